package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// The designs, in the order in which they take turns.
const (
	direct = "direct"
	copied = "copy"
	carry  = "hbone"
)

func designs() []string { return []string{direct, copied, carry} }

// The workloads.
const (
	bulk     = "bulk"
	pingPong = "pingpong"
	connect  = "connect"
)

func workloads() []string { return []string{bulk, pingPong, connect} }

// path is a design that is up and running.
type path struct {
	entry  string   // where the load connects to
	relays []*child // whose CPU time counts
}

// measureAll starts the processes, plays all rounds and stops the processes again.
func measureAll(ctx context.Context, o options, progress io.Writer) (*report, error) {
	dir, err := os.MkdirTemp("", "culvert-bench-")
	if err != nil {
		return nil, fmt.Errorf("folder for the certificates: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := writeCertificates(dir); err != nil {
		return nil, err
	}
	// Cancelled before the children are waited for: one that hangs is killed.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	house := &children{ctx: ctx}
	paths, err := startPaths(house, dir)
	if err == nil {
		var r *report
		if r, err = playRounds(ctx, o, paths, progress); err == nil {
			return r, house.stop()
		}
	}
	cancel()
	// What ended a child early is most likely what broke the measurement.
	return nil, errors.Join(err, house.stop())
}

func startPaths(house *children, dir string) (map[string]path, error) {
	app, err := house.start(roleConfig{Role: roleApp})
	if err != nil {
		return nil, err
	}
	far, err := house.start(roleConfig{Role: roleCopy, Target: app.address})
	if err != nil {
		return nil, err
	}
	near, err := house.start(roleConfig{Role: roleCopy, Target: far.address})
	if err != nil {
		return nil, err
	}
	server, err := house.start(roleConfig{Role: roleServer, Dir: dir})
	if err != nil {
		return nil, err
	}
	client, err := house.start(roleConfig{Role: roleClient, Dir: dir, Target: server.address, Authority: app.address})
	if err != nil {
		return nil, err
	}
	return map[string]path{
		direct: {entry: app.address},
		copied: {entry: near.address, relays: []*child{near, far}},
		carry:  {entry: client.address, relays: []*child{client, server}},
	}, nil
}

func playRounds(ctx context.Context, o options, paths map[string]path, progress io.Writer) (*report, error) {
	r := &report{Rounds: o.rounds, Duration: o.duration.String(), samples: make(map[cell][]sample)}
	for round := range o.rounds {
		for _, workload := range workloads() {
			for _, design := range designs() {
				fmt.Fprintf(progress, "\rround %d of %d: %-8s %-6s", round+1, o.rounds, workload, design)
				s, err := measure(ctx, paths[design], workload, o.duration)
				if err != nil {
					fmt.Fprintln(progress)
					return nil, fmt.Errorf("%s over %s: %w", workload, design, err)
				}
				c := cell{design, workload}
				r.samples[c] = append(r.samples[c], s)
			}
		}
	}
	fmt.Fprintf(progress, "\r%50s\r", "")
	return r, nil
}

// measure plays one workload over one design.
func measure(ctx context.Context, p path, workload string, d time.Duration) (sample, error) {
	before, err := cpuTime(p.relays)
	if err != nil {
		return sample{}, err
	}
	out, err := runLoad(ctx, roleConfig{Role: roleLoad, Target: p.entry, Workload: workload, Duration: d})
	if err != nil {
		return sample{}, err
	}
	after, err := cpuTime(p.relays)
	if err != nil {
		return sample{}, err
	}
	var l loadResult
	if err := json.Unmarshal(out, &l); err != nil {
		return sample{}, fmt.Errorf("reading the load's result: %w", err)
	}
	return newSample(l, after-before, len(p.relays) > 0), nil
}

func cpuTime(relays []*child) (time.Duration, error) {
	var sum time.Duration
	for _, c := range relays {
		used, err := c.cpuTime()
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}
