package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is an exec.Cmd whose process starts inside a namespace and a cgroup of the lab. It is not moved
// there afterwards: its first instruction already runs in both. The process gets a process group of its
// own, so that a Ctrl-C at the terminal reaches only the program that runs the lab.
type Cmd struct {
	*exec.Cmd
	lab     *Lab
	netns   string // empty: a new one
	cgroup  string
	process process
}

func (l *Lab) command(ctx context.Context, netnsPath, cgroup string, argv []string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), lab: l, netns: netnsPath, cgroup: cgroup}
	c.WaitDelay = 2 * time.Second
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, UseCgroupFD: true}
	if netnsPath == "" {
		c.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	}
	return c
}

// Start begins the process and enters it into the lab's record.
func (c *Cmd) Start() error {
	fd, err := unix.Open(c.cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("lab: open cgroup %s: %w", c.cgroup, err)
	}
	defer unix.Close(fd)
	c.SysProcAttr.CgroupFD = fd
	if c.netns == "" {
		err = c.Cmd.Start()
	} else {
		err = inNamespace(c.netns, c.Cmd.Start)
	}
	if err != nil {
		return err
	}
	c.process, err = processByPID(c.Process.Pid, filepath.Base(c.Path))
	if err == nil {
		err = c.lab.record.addProcess(c.process)
	}
	if err != nil {
		return errors.Join(err, c.Process.Kill(), c.Cmd.Wait())
	}
	return nil
}

// Wait waits for the process as exec.Cmd does.
func (c *Cmd) Wait() error {
	err := c.Cmd.Wait()
	c.lab.record.removeProcess(c.process)
	return err
}

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns what it wrote to standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns what it wrote to standard output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// MemoryFile returns an unlinked file that holds data, for handing secrets to a process by descriptor:
// in ExtraFiles it is /dev/fd/3 and so on, and no path leads to it.
func MemoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("lab: memory file %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: memory file %s: %w", name, err), f.Close())
	}
	if _, err := f.Seek(0, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: memory file %s: %w", name, err), f.Close())
	}
	return f, nil
}
