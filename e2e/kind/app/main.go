// Command app is the application of the end-to-end tests: it runs in pods of the tools image, as a server that says who
// asked it and as a client that counts. It uses the standard library alone, so that it is any Go application.
//
//	app serve --http 8080,9080 --tcp 9000 --grpc 9001
//	app loop  --url http://web:8080/ --interval 100ms --listen 8081
//	app first --url http://web:8080/
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// errUsage is wrapped by errors that mean the command line is wrong.
var errUsage = errors.New("usage: app serve|loop|first [flags]")

// mode is one of the things that app can be.
type mode func(ctx context.Context, args []string, out io.Writer) error

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	modes := map[string]mode{"serve": serve, "loop": loop, "first": first}
	m, ok := modes[args[0]]
	if !ok {
		return fmt.Errorf("no mode %q: %w", args[0], errUsage)
	}
	return m(ctx, args[1:], out)
}
