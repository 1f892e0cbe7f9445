// Command kind makes a real Kubernetes cluster of two nodes on this machine, for end-to-end tests. It pulls no image: the
// node image is made from Debian packages and Go modules. README.md says what the cluster looks like.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := newRootCommand(slog.New(slog.NewTextHandler(os.Stderr, nil))).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e/kind:", err)
		os.Exit(1)
	}
}
