package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ticksPerSecond is USER_HZ: what /proc counts CPU time in, on every architecture that Go runs on.
const ticksPerSecond = 100

// cpuTime is the CPU time that a process has used, all its threads together.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	// The second field is the command in brackets, which may contain anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const user, system = 11, 12
	if len(fields) <= system {
		return 0, fmt.Errorf("CPU time: unexpected %q", b)
	}
	var sum uint64
	for _, f := range fields[user : system+1] {
		n, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("CPU time: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticksPerSecond, nil
}

// memory is what a process has resident, in bytes.
type memory struct {
	Now  uint64 `json:"now"`
	Anon uint64 `json:"anon"` // without the pages of its file
	Most uint64 `json:"most"` // VmHWM
}

func memoryOf(pid int) (memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, fmt.Errorf("memory: %w", err)
	}
	var m memory
	for _, field := range []struct {
		name string
		to   *uint64
	}{{"VmRSS:", &m.Now}, {"RssAnon:", &m.Anon}, {"VmHWM:", &m.Most}} {
		_, rest, _ := strings.Cut(string(b), "\n"+field.name)
		words := strings.Fields(rest)
		if len(words) == 0 {
			return m, fmt.Errorf("memory: no %s of process %d", field.name, pid)
		}
		kilobytes, err := strconv.ParseUint(words[0], 10, 64)
		if err != nil {
			return m, fmt.Errorf("memory: %w", err)
		}
		*field.to = kilobytes << 10
	}
	return m, nil
}

// steadyMemory looks every half second until ctx ends, and returns the median of each figure.
func steadyMemory(ctx context.Context, pid int) (memory, error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var now, anon []uint64
	for {
		m, err := memoryOf(pid)
		if err != nil {
			return m, err
		}
		now, anon = append(now, m.Now), append(anon, m.Anon)
		select {
		case <-ctx.Done():
			slices.Sort(now)
			slices.Sort(anon)
			return memory{Now: now[len(now)/2], Anon: anon[len(anon)/2], Most: m.Most}, nil
		case <-tick.C:
		}
	}
}

// meter measures the CPU time of several processes over the same time.
type meter struct {
	begin time.Time
	start map[string]time.Duration
	pids  map[string]int
}

func startMeter(pids map[string]int) (*meter, error) {
	m := &meter{begin: time.Now(), start: map[string]time.Duration{}, pids: pids}
	for name, pid := range pids {
		used, err := cpuTime(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		m.start[name] = used
	}
	return m, nil
}

// read returns the share of one core that each process used since the start, in percent.
func (m *meter) read() (map[string]float64, time.Duration, error) {
	took := time.Since(m.begin)
	shares := map[string]float64{}
	for name, pid := range m.pids {
		used, err := cpuTime(pid)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", name, err)
		}
		shares[name] = 100 * (used - m.start[name]).Seconds() / took.Seconds()
	}
	return shares, took, nil
}

// idle is how much of all cores nobody used since boot, with how long that was.
func machineIdle() (idle, total time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("machine's CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, word := range strings.Fields(line)[1:] {
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("machine's CPU time: %w", err)
		}
		const idleField, waitField, guestField = 3, 4, 8
		if i >= guestField {
			break // contained in the others
		}
		d := time.Duration(n) * time.Second / ticksPerSecond
		total += d
		if i == idleField || i == waitField {
			idle += d
		}
	}
	return idle, total, nil
}

func ownCPU() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
