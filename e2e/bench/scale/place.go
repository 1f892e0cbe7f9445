package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

const (
	labPrefix    = "culvert-scale"
	localNode    = "local"
	maxLocalPods = 240 // what a node of the lab has room for
	// stopTime is how long a process may take to end by itself.
	stopTime = 10 * time.Second
)

// place is the lab with the one node that is measured. API server, etcd and agent all run on it; being in the node's
// network namespace, they cannot collide with others of the machine.
type place struct {
	lab  *lab.Lab
	node *lab.Node
	data string // a tmpfs: the disk is not what is measured
}

func newPlace(ctx context.Context, runDir string) (*place, error) {
	// What a killed run left behind.
	if err := lab.Down(runDir); err != nil && !errors.Is(err, lab.ErrNotALab) {
		return nil, err
	}
	l, err := lab.New(ctx, lab.Options{Prefix: labPrefix, RunDir: runDir})
	if err != nil {
		return nil, err
	}
	p := &place{lab: l}
	if err := p.make(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return p, nil
}

func (p *place) make() (err error) {
	if p.node, err = p.lab.AddNode(localNode); err != nil {
		return err
	}
	// The lab unmounts whatever is mounted below its folder.
	p.data = filepath.Join(p.node.Dir, "data")
	if err := os.Mkdir(p.data, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if err := unix.Mount("tmpfs", p.data, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", p.data, err)
	}
	return nil
}

// dial connects from within the node's namespace.
func (p *place) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = p.node.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// process is a program that runs on the node until it is stopped.
type process struct {
	name  string
	cmd   *lab.Cmd
	log   string // path
	ended chan struct{}
	err   error // when ended is closed
}

// start runs a program. What it writes goes to a file, and to watch as well, if given.
func (p *place) start(ctx context.Context, name string, watch io.Writer, argv ...string) (*process, error) {
	path := filepath.Join(p.data, name+".log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	x := &process{name: name, log: path, ended: make(chan struct{})}
	x.cmd = p.node.Command(ctx, argv...)
	x.cmd.Stdout, x.cmd.Stderr = file, file
	if watch != nil {
		both := io.MultiWriter(file, watch)
		x.cmd.Stdout, x.cmd.Stderr = both, both
	}
	if err := x.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), file.Close())
	}
	go func() {
		defer close(x.ended)
		x.err = errors.Join(x.cmd.Wait(), file.Close())
	}()
	return x, nil
}

func (x *process) pid() int { return x.cmd.Process.Pid }

// stop ends the process and waits for it. It may be called again.
func (x *process) stop() {
	if x == nil {
		return
	}
	_ = x.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-x.ended:
	case <-time.After(stopTime):
		_ = x.cmd.Process.Kill()
		<-x.ended
	}
}

// check returns an error when the process ended by itself.
func (x *process) check() error {
	select {
	case <-x.ended:
		return fmt.Errorf("%s ended by itself (%w); its log ends with:\n%s", x.name, x.err, x.tail())
	default:
		return nil
	}
}

func (x *process) tail() []byte {
	const most = 2000
	b, err := os.ReadFile(x.log)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-most):]
}

// await asks until the answer is yes, for as long as the process lives.
func (x *process) await(ctx context.Context, patience time.Duration, what string, ask func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s: not %s after %s", x.name, what, patience))
	defer cancel()
	for !ask() {
		if err := x.check(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; its log ends with:\n%s", context.Cause(ctx), x.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// output runs a program on the node and returns what it wrote.
func (p *place) output(ctx context.Context, argv ...string) error {
	out, err := p.node.Command(ctx, argv...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(argv[0]), err, out)
	}
	return err
}
