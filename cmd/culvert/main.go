// Culvert gives every enrolled pod of a node a SPIFFE identity and mutual TLS, and enforces PeerAuthentication.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	os.Exit(exitCode(err))
}

// printable keeps what others say, in an error, from steering the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// exitCode is 0 without an error, what an exitError says, and 1 otherwise.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "culvert:", printable(err.Error()))
		return 1
	}
	if exit.err != nil {
		fmt.Fprintln(os.Stderr, "culvert:", printable(exit.err.Error()))
	}
	return exit.code
}
