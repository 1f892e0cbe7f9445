// Culvert gives every enrolled pod of a node a SPIFFE identity and mutual TLS, and enforces PeerAuthentication.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	os.Exit(exitCode(err))
}

// exitCode is 0 without an error, what an exitError says, and 1 otherwise.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "culvert:", err)
		return 1
	}
	if exit.err != nil {
		fmt.Fprintln(os.Stderr, "culvert:", exit.err)
	}
	return exit.code
}
