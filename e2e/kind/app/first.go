package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"time"
)

// outcome is what came of a single try.
type outcome struct {
	URL     string
	OK      bool
	Answer  string `json:",omitempty"`
	Reason  string `json:",omitempty"`
	Error   string `json:",omitempty"`
	Started time.Time
	Seconds float64
}

// first asks exactly once, as the first thing it does, and fails if there was no answer. It shows what happens to the first
// packet of a pod.
func first(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("first", flag.ContinueOnError)
	address := flags.String("url", "", "what to ask: http://HOST:PORT/PATH, or tcp://HOST:PORT for an echo")
	timeout := flags.Duration("timeout", 5*time.Second, "of the try")
	if err := flags.Parse(args); err != nil {
		return err
	}
	t, err := newTarget(*address, *timeout, false)
	if err != nil {
		return err
	}
	o := outcome{URL: *address, Started: time.Now()}
	body, err := t.try(ctx)
	o.Seconds = time.Since(o.Started).Seconds()
	o.OK, o.Answer = err == nil, string(body)
	if err != nil {
		o.Reason, o.Error = reason(err), err.Error()
	}
	if encodeErr := json.NewEncoder(out).Encode(o); encodeErr != nil {
		return fmt.Errorf("print the outcome: %w", encodeErr)
	}
	return err
}
