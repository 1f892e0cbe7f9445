package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

// daemon is an agent or a tunnel. Its log file goes on when it is started again.
type daemon struct {
	name    string // "agent of node a"
	log     logFile
	command func(context.Context) (*lab.Cmd, []*os.File, error) // files are closed once it runs
	cmd     *lab.Cmd
	ended   chan struct{} // closed when cmd was waited for
	err     error         // of the wait
	wanted  bool          // false: the end was asked for
}

func (d *daemon) start(ctx context.Context) error {
	// With --keep the process outlives the demo, and its end is always asked for by stop.
	cmd, files, err := d.command(context.WithoutCancel(ctx))
	if err != nil {
		return fmt.Errorf("demo: %s: %w", d.name, err)
	}
	out, err := os.OpenFile(d.log.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("demo: log of %s: %w", d.name, err)
	}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, files
	err = cmd.Start()
	for _, f := range append(files, out) {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("demo: start %s: %w", d.name, err)
	}
	d.cmd, d.wanted, d.ended = cmd, true, make(chan struct{})
	go func() {
		d.err = cmd.Wait()
		close(d.ended)
	}()
	return nil
}

// stop ends the process with the signal and waits for it, at most five seconds before it is killed.
func (d *daemon) stop(signal os.Signal) {
	if d.cmd == nil {
		return
	}
	d.wanted = false
	_ = d.cmd.Process.Signal(signal)
	select {
	case <-d.ended:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Signal(syscall.SIGKILL)
		<-d.ended
	}
}

// check returns an error with the end of the log when the process ended by itself.
func (d *daemon) check() error {
	if d.cmd == nil || !d.wanted {
		return nil
	}
	select {
	case <-d.ended:
		return fmt.Errorf("demo: %s ended by itself (%v); its log ends with:\n%s", d.name, d.err, d.tail(8))
	default:
		return nil
	}
}

func (d *daemon) tail(count int) string {
	b, err := os.ReadFile(d.log.path)
	if err != nil {
		return "  " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-count):], "\n  ")
}

// countMessage counts the log lines with that message.
func (d *daemon) countMessage(message string) (int, error) {
	lines, err := d.log.read()
	count := 0
	for _, l := range lines {
		if l.get("msg") == message {
			count++
		}
	}
	return count, err
}
