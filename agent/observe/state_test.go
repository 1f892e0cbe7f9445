package observe

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheStateFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.json")
	r := New(Options{Path: path, Boot: "a"})
	workloads := map[uint64]Workload{}
	var counts []Count
	for i := range 16384 {
		cookie := uint64(i%64) + 1<<33
		workloads[cookie] = Workload{Namespace: fmt.Sprintf("namespace-%d", i%64), ServiceAccount: "service-account", Pod: fmt.Sprintf("pod-%d", i%64),
			Labels: map[string]string{"app": strings.Repeat("x", 60)}}
		counts = append(counts, Count{Cookie: cookie, Port: uint16(i), Peer: netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)}), Count: 1 << 40, LastNanoseconds: 1 << 50})
	}
	r.Enrolled(workloads)
	r.Plaintext(counts, 1<<50+1, outside)
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > maxState || info.Size() < maxState/2 || info.Mode().Perm() != 0o600 {
		t.Fatalf("file %v, %v", info, err)
	}
	after := New(Options{Path: path, Boot: "a"})
	if len(after.seen.kernel) != len(counts) || len(after.seen.by) == 0 {
		t.Errorf("%d counts of the kernel and %d observations are known again", len(after.seen.kernel), len(after.seen.by))
	}
	if _, dropped := after.Since(); dropped.IsZero() {
		t.Error("nobody is told that some are missing")
	}
	t.Logf("%d bytes hold %d observations of %d", info.Size(), len(after.seen.by), len(r.seen.by))
}

func TestLabelsDoNotKeepTheStateFromBeingSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.json")
	r := New(Options{Path: path})
	r.Enrolled(map[uint64]Workload{1: {Namespace: "n", Pod: "p", Labels: map[string]string{"a": strings.Repeat("x", 3<<20)}}})
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
}

func TestAStateFileThatCannotBeUsedIsLeftOut(t *testing.T) {
	tests := map[string]string{
		"of a later version": `{"version":2,"seen":"another form"}`,
		"no JSON":            "\x00\x00",
		"cut off":            `{"version":1,"since":"2026-01-01T00:0`,
		"empty":              "",
		"counts cut off":     `{"version":1,"kernel":"AAAA"}`,
		"no such workload":   `{"version":1,"seen":[{"w":3}]}`,
		"negative":           `{"version":1,"workloads":[{}],"seen":[{"w":-1}]}`,
		"far too large":      strings.Repeat(" ", maxState+1),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "observed.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := New(Options{Path: path})
			if len(r.Observations(time.Time{})) != 0 {
				t.Error("something was taken over")
			}
			if err := r.Save(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAFullDiskLosesNothingButTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.json")
	r := New(Options{Path: path})
	r.Flow(Event{Inbound: true, Carried: MTLS, Destination: End{Port: 80}}, &cart, outside(legacy))
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", path+".new"); err != nil {
		t.Fatal(err)
	}
	r.Flow(Event{Inbound: true, Carried: MTLS, Destination: End{Port: 81}}, &cart, outside(legacy))
	if err := r.Save(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("error %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || string(after) != string(before) {
		t.Errorf("the last file was touched: %v", err)
	}
	if _, err := os.Lstat(path + ".new"); err == nil {
		t.Error("half a file is left")
	}
	if len(r.Observations(time.Time{})) != 2 {
		t.Error("something was forgotten")
	}
	if err := r.Save(); err != nil {
		t.Error(err)
	}
}
