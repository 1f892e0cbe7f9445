package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// command is a program to run.
type command struct {
	stdin io.Reader
	env   []string // beside this process's own
	limit time.Duration
	as    string // how an error calls the program, if not by its name
}

// defaultLimit bounds commands that say nothing else.
const defaultLimit = 2 * time.Minute

// run returns the command's standard output. An error contains what it printed to standard error.
func (c command) run(ctx context.Context, name string, args ...string) (string, error) {
	limit := c.limit
	if limit == 0 {
		limit = defaultLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no end after %s", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stdin = c.stdin
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	said := lastLines(stderr.String(), 40)
	return stdout.String(), fmt.Errorf("%s: %w: %s", c.describe(name, args), errors.Join(err, context.Cause(ctx)), said)
}

// describe names the command in an error, without the details of a long one.
func (c command) describe(name string, args []string) string {
	if c.as != "" {
		return c.as
	}
	words := append([]string{filepath.Base(name)}, args...)
	const most = 12
	if len(words) > most {
		words = append(words[:most:most], "...")
	}
	return strings.Join(words, " ")
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// poll calls ready until it returns nil, and returns its last error when ctx ends first.
func poll(ctx context.Context, every time.Duration, ready func(context.Context) error) error {
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(every):
		}
	}
}
