package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// What the first byte of a connection asks of the application.
const (
	sinkByte    = 'S' // read everything, then say how much it was
	echoByte    = 'E' // send back balls
	requestByte = 'R' // answer one request and close
)

const (
	ballSize     = 16 << 10
	balls        = 32 // connections of the ping-pong
	requestSize  = 256
	responseSize = 1024
	requesters   = 8 // how many connect at the same time
)

// loadResult is what a load process prints.
type loadResult struct {
	Seconds float64
	Bytes   int64 // of payload, both directions; 0 where the bytes do not matter
	Count   int64 // balls returned or connections answered
	P50     float64
	P99     float64 // microseconds of a ball or a connection
}

func playLoad(ctx context.Context, c roleConfig, stdout io.Writer) error {
	var result loadResult
	var err error
	switch c.Workload {
	case bulk:
		result, err = playBulk(ctx, c.Target, c.Duration)
	case pingPong:
		result, err = playParallel(ctx, balls, c, playBalls)
		result.Bytes = result.Count * 2 * ballSize
	case connect:
		result, err = playParallel(ctx, requesters, c, playRequests)
	default:
		err = fmt.Errorf("unknown workload %q", c.Workload)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}

// playBulk writes for the duration and counts until the application has said how much arrived.
func playBulk(ctx context.Context, target string, d time.Duration) (loadResult, error) {
	c, err := dial(ctx, target)
	if err != nil {
		return loadResult{}, err
	}
	defer c.Close()
	start := time.Now()
	if _, err := c.Write([]byte{sinkByte}); err != nil {
		return loadResult{}, err
	}
	var sent int64
	for block := make([]byte, 256<<10); time.Since(start) < d; {
		n, err := c.Write(block)
		if err != nil {
			return loadResult{}, err
		}
		sent += int64(n)
	}
	if err := c.CloseWrite(); err != nil {
		return loadResult{}, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return loadResult{}, fmt.Errorf("the application's count: %w", err)
	}
	elapsed := time.Since(start)
	got, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil || got != sent {
		return loadResult{}, fmt.Errorf("%d bytes sent, the application counted %q", sent, line)
	}
	return loadResult{Seconds: elapsed.Seconds(), Bytes: got}, nil
}

// worker repeats something until stop says so and returns how long each took.
type worker func(ctx context.Context, target string, stop *atomic.Bool) ([]time.Duration, error)

func playParallel(ctx context.Context, n int, c roleConfig, w worker) (loadResult, error) {
	var stop atomic.Bool
	times := make([][]time.Duration, n)
	group, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	timer := time.AfterFunc(c.Duration, func() { stop.Store(true) })
	defer timer.Stop()
	for i := range n {
		group.Go(func() (err error) {
			times[i], err = w(ctx, c.Target, &stop)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return loadResult{}, err
	}
	elapsed := time.Since(start)
	all := slices.Concat(times...)
	if len(all) == 0 {
		return loadResult{}, fmt.Errorf("nothing came back in %s", c.Duration)
	}
	slices.Sort(all)
	return loadResult{
		Seconds: elapsed.Seconds(),
		Count:   int64(len(all)),
		P50:     microseconds(all[len(all)/2]),
		P99:     microseconds(all[len(all)*99/100]),
	}, nil
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func playBalls(ctx context.Context, target string, stop *atomic.Bool) ([]time.Duration, error) {
	c, err := dial(ctx, target)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write([]byte{echoByte}); err != nil {
		return nil, err
	}
	var times []time.Duration
	for ball := make([]byte, ballSize); !stop.Load() && ctx.Err() == nil; {
		start := time.Now()
		if _, err := c.Write(ball); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, ball); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}

func playRequests(ctx context.Context, target string, stop *atomic.Bool) ([]time.Duration, error) {
	var times []time.Duration
	for !stop.Load() && ctx.Err() == nil {
		start := time.Now()
		c, err := dial(ctx, target)
		if err != nil {
			return nil, err
		}
		err = request(c)
		c.Close()
		if err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}

// request sends one request and reads the answer to its end.
func request(c *net.TCPConn) error {
	message := make([]byte, 1+requestSize)
	message[0] = requestByte
	if _, err := c.Write(message); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c)
	if err != nil {
		return err
	}
	if n != responseSize {
		return fmt.Errorf("an answer of %d bytes instead of %d", n, responseSize)
	}
	return nil
}
