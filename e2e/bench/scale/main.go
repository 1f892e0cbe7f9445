// Command scale measures what a large cluster costs the agent of one node: memory, CPU, and how long a changed
// policy takes to be enforced.
//
//	load  -- writes -->  kube-apiserver  -- watches -->  agent  -->  map of modes in the kernel
//	 |                        |                            |                     |
//	 |                      etcd                    pods of this node            |
//	 +---- polls the map twice a millisecond -------(real namespaces)------------+
//
// API server, etcd, agent and the measured node's pods are real. The pods of all other nodes are objects only:
// that is all the agent ever sees of them. Everything runs in network namespaces and cgroups of a lab (package
// e2e/lab), which is removed at the end, also after a failure or Ctrl-C.
//
// Needs root, and a folder with kube-apiserver, etcd and kubectl.
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

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "scale:", err)
		}
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	r, err := measureAll(ctx, o, stderr)
	if r != nil {
		err = errors.Join(err, r.write(stdout, o.output))
	}
	if err == nil && o.assert {
		err = r.missed()
	}
	return err
}
