package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// profile is perf while it looks at the agent.
type profile struct {
	cmd    *exec.Cmd
	folder string
}

// startProfile records where the agent spends its CPU time, if that was asked for. perf looks at the whole machine:
// told of one process, it fails when a thread of it ends at the wrong moment, and the agent's that enter pods do.
func (b *bench) startProfile(ctx context.Context) (*profile, error) {
	p := &profile{folder: b.options.profile}
	if p.folder == "" {
		return p, nil
	}
	if err := os.MkdirAll(p.folder, 0o755); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	p.cmd = exec.CommandContext(ctx, "perf", "record", "--quiet", "-a", "-F", "199", "-g", "-o", p.file("agent.perf"))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return p, nil
}

func (p *profile) file(name string) string { return filepath.Join(p.folder, name) }

// stop has perf write what it recorded, and a list of the functions.
func (p *profile) stop(progress io.Writer) {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(os.Interrupt)
	_ = p.cmd.Wait() // it ends with the signal it was sent
	for name, args := range map[string][]string{
		"own.txt": {"--no-children", "--fields", "overhead,symbol"},
		"all.txt": {"--children", "--fields", "overhead_children,overhead,symbol"},
	} {
		list := exec.Command("perf", append([]string{"report", "-i", p.file("agent.perf"), "--comm", agentProgram,
			"--percentage", "relative", "--percent-limit", "0.5", "-g", "none", "--stdio"}, args...)...)
		out, err := list.Output()
		if err == nil {
			err = os.WriteFile(p.file(name), out, 0o644)
		}
		if err != nil {
			fmt.Fprintln(progress, "profile:", err)
		}
	}
}
