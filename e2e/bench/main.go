// Command bench compares, in one run and on one machine, a direct TCP connection, a relay that copies
// without TLS, and HBONE, so that their ratios can be trusted although the absolute figures cannot.
//
//	direct  load --------------------------------------> app
//	copy    load --> relay --TCP--> relay -------------> app
//	hbone   load --> client end --mTLS, HTTP/2--> server end --> app
//
// Each box is a process of its own: this program, started again. The designs take turns in every round,
// so that a machine that slows down slows all of them. Every socket uses cubic: a default of bbr loses
// a third on loopback.
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
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		stop()
		os.Exit(1)
	}
}

type options struct {
	rounds   int
	duration time.Duration
	output   string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if role := os.Getenv(roleVariable); role != "" {
		return runRole(ctx, role, os.Stdin, stdout)
	}
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	report, err := measureAll(ctx, o, stderr)
	if err != nil {
		return err
	}
	if o.output == "json" {
		return report.writeJSON(stdout)
	}
	return report.writeTable(stdout)
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "how often each design plays each workload; the median counts")
	flags.DurationVar(&o.duration, "duration", 2*time.Second, "how long one workload of one round lasts")
	flags.StringVar(&o.output, "o", "table", "table or json")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.rounds < 1:
		return o, fmt.Errorf("--rounds %d: at least 1", o.rounds)
	case o.duration <= 0:
		return o, fmt.Errorf("--duration %s: must be positive", o.duration)
	case o.output != "table" && o.output != "json":
		return o, fmt.Errorf("-o %q: table or json", o.output)
	}
	return o, nil
}
