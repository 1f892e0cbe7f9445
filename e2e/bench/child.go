package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// roleVariable tells a process which part it plays: a roleConfig as JSON.
const roleVariable = "CULVERT_BENCH_ROLE"

// roleConfig is all that a child process is told.
type roleConfig struct {
	Role      string
	Target    string        // whom to dial
	Authority string        // what the client end asks the server end for
	Dir       string        // where the certificates are
	Workload  string        // what the load plays
	Duration  time.Duration // and how long
}

// A child writes its address when it is ready, then answers every line on its standard input with the CPU
// time that it has used so far, and ends when its standard input does.
type child struct {
	role    string
	address string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  *bufio.Reader
}

// children are the processes of a run, to be stopped together.
type children struct {
	ctx context.Context // ends with the run and kills them
	all []*child
}

func command(ctx context.Context, c roleConfig) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	config, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding the role: %w", err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), roleVariable+"="+string(config))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

func (h *children) start(config roleConfig) (*child, error) {
	cmd, err := command(h.ctx, config)
	if err != nil {
		return nil, err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("%s process: %w", config.Role, err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("%s process: %w", config.Role, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s process: %w", config.Role, err)
	}
	c := &child{role: config.Role, cmd: cmd, stdin: stdin, stdout: bufio.NewReader(stdout)}
	h.all = append(h.all, c)
	if c.address, err = c.readLine(); err != nil {
		return nil, err
	}
	return c, nil
}

func (h *children) stop() error {
	var errs []error
	for _, c := range h.all {
		c.stdin.Close()
		if err := c.cmd.Wait(); err != nil && h.ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("%s process: %w", c.role, err))
		}
	}
	return errors.Join(errs...)
}

func (c *child) cpuTime() (time.Duration, error) {
	if _, err := io.WriteString(c.stdin, "\n"); err != nil {
		return 0, fmt.Errorf("asking the %s process for its CPU time: %w", c.role, err)
	}
	line, err := c.readLine()
	if err != nil {
		return 0, err
	}
	used, err := time.ParseDuration(line)
	if err != nil {
		return 0, fmt.Errorf("CPU time of the %s process: %w", c.role, err)
	}
	return used, nil
}

func (c *child) readLine() (string, error) {
	line, err := c.stdout.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the %s process ended: %w", c.role, err)
	}
	return strings.TrimSpace(line), nil
}

// runLoad plays a workload in a process of its own and returns what it prints.
func runLoad(ctx context.Context, config roleConfig) ([]byte, error) {
	// A relay that loses a connection must not hang the run.
	ctx, cancel := context.WithTimeout(ctx, config.Duration+time.Minute)
	defer cancel()
	cmd, err := command(ctx, config)
	if err != nil {
		return nil, err
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("load process: %w", err)
	}
	return out, nil
}
