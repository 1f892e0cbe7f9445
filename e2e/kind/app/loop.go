package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// counts is what a loop has seen so far.
type counts struct {
	URL       string
	Tries     int
	Succeeded int
	Failed    int
	Reasons   map[string]int `json:",omitempty"` // of failures
	LastError string         `json:",omitempty"`
	Started   time.Time
	// Since when the last try has had the outcome that it had: a switch from one to the other is seen to the try.
	Steady time.Time
	OK     bool // the last try succeeded
	// SlowestSeconds is the longest that a try which succeeded took.
	SlowestSeconds float64
}

// mostReasons bounds the kinds of failures that are told apart.
const mostReasons = 20

// record adds the outcome of one try.
func (c *counts) record(at time.Time, took time.Duration, err error) {
	if ok := err == nil; ok != c.OK || c.Tries == 0 {
		c.OK, c.Steady = ok, at
	}
	c.Tries++
	if err == nil {
		c.Succeeded++
		c.SlowestSeconds = max(c.SlowestSeconds, took.Seconds())
		return
	}
	c.Failed++
	c.LastError = err.Error()
	if c.Reasons == nil {
		c.Reasons = map[string]int{}
	}
	why := reason(err)
	if _, known := c.Reasons[why]; !known && len(c.Reasons) >= mostReasons {
		why = "other"
	}
	c.Reasons[why]++
}

// loop asks again and again until ctx ends, then prints its counts. They can be read over HTTP meanwhile.
func loop(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("loop", flag.ContinueOnError)
	address := flags.String("url", "", "what to ask: http://HOST:PORT/PATH, or tcp://HOST:PORT for an echo")
	interval := flags.Duration("interval", 100*time.Millisecond, "from the start of one try to the next")
	timeout := flags.Duration("timeout", 2*time.Second, "of one try")
	keepAlive := flags.Bool("keep-alive", false, "use one connection as long as it lasts")
	listen := flags.String("listen", "", "port to read the counts from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *interval <= 0 || *timeout <= 0 {
		return fmt.Errorf("--interval and --timeout must be positive: %w", errUsage)
	}
	t, err := newTarget(*address, *timeout, *keepAlive)
	if err != nil {
		return err
	}
	l := &looper{target: t, counts: counts{URL: *address, Started: time.Now()}}
	defer func() { _ = json.NewEncoder(out).Encode(l.snapshot()) }()
	err = eachPort(*listen, func(listener net.Listener) {
		server := &http.Server{Handler: l, ReadHeaderTimeout: 10 * time.Second}
		context.AfterFunc(ctx, func() { _ = server.Close() })
		go func() { _ = server.Serve(listener) }() // until it is closed
	})
	if err != nil {
		return err
	}
	l.run(ctx, *interval)
	return nil
}

// looper counts the outcomes of asking one target.
type looper struct {
	target *target
	mu     sync.Mutex // guards counts
	counts counts
}

func (l *looper) run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		start := time.Now()
		_, err := l.target.try(ctx)
		if ctx.Err() != nil {
			return // it was interrupted, which is no failure of the target
		}
		l.mu.Lock()
		l.counts.record(start, time.Since(start), err)
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// snapshot returns the counts as JSON.
func (l *looper) snapshot() json.RawMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	content, err := json.Marshal(l.counts)
	if err != nil {
		return json.RawMessage(`{"Error":"the counts cannot be encoded"}`)
	}
	return content
}

// ServeHTTP answers every request with the counts.
func (l *looper) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(l.snapshot(), '\n'))
}
