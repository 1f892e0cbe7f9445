package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

// token is what a service account's token looks like.
const token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJhdWQiOlsiaHR0cHM6Ly9rIl19.c2lnbmF0dXJl"

func reporting(node string) *seeingNode {
	refused := seenEvent(observe.Failed, "a/b", "c/d", 1)
	refused.Reason = "certificate authority: Bearer " + token + " was not accepted"
	return &seeingNode{node: node, memory: recorded(refused), readiness: watchedFor(node, week, fromLegacy), report: &admin.Bugreport{
		Node: node, Counters: map[string]uint64{"strict_refused": 1}, Features: []admin.ReportFeature{{Name: "tcx", Needed: "Linux 6.6"}},
		Errors: []string{"x: -----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----"}}}
}

// unpacked are the files of a report, by name without the folder that is named after the time.
func unpacked(t *testing.T, text []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		part, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		folder, name, _ := strings.Cut(h.Name, "/")
		if !strings.HasPrefix(folder, "culvert-bugreport-") || path.Clean(h.Name) != h.Name || h.Mode != 0o600 {
			t.Errorf("file %s, mode %o", h.Name, h.Mode)
		}
		files[name] = string(part)
	}
}

func TestBugreportOfAllNodesHasNoSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.tar.gz")
	c := &seeingCluster{sockets: map[string]string{"n1": serveNode(t, reporting("n1"), version), "n2": serveNode(t, reporting("n2"), "v0"), "n3": ""}}
	out, notes, err := runSeeing(t.Context(), c, "bugreport", "--file", file)
	if codeOf(err) != exitBadNews || strings.TrimSpace(out) != file || !strings.Contains(notes, "node n3: agent of node n3: no answer") {
		t.Fatalf("%q, notes %q, %v", out, notes, err)
	}
	delete(c.sockets, "n3")
	if _, notes, err := runSeeing(t.Context(), c, "bugreport", "--file", file+".2"); err != nil || notes != "" {
		t.Errorf("nothing is missing: %v, %s", err, notes)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := unpacked(t, text)
	for name, want := range map[string]string{
		"n1/state.json": "strict_refused", "n1/certificates.json": "spiffe://", "n1/flows.json": `"carried": "failed"`, "n1/readiness.json": "old/legacy-1",
		"n2/state.json": `"version": "v0"`, "n2/version.json": version, "version.json": version, "errors.txt": "node n3: agent of node n3: no answer",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: no %q in %.200q", name, want, files[name])
		}
	}
	for name, text := range files {
		for _, secret := range []string{"PRIVATE KEY", "MHcC", token[:30], "eyJ"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %q", name, secret)
			}
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestBugreportKeepsWhatItGets(t *testing.T) {
	n := reporting("n1")
	n.err = errors.New("the loop does not answer")
	out, notes, err := runSeeing(t.Context(), nil, "bugreport", "--local", "--admin-socket", serveNode(t, n, version), "--file", "-")
	files := unpacked(t, []byte(out))
	if codeOf(err) != exitBadNews || !strings.Contains(notes, "state.json: agent: the loop does not answer") || files["certificates.json"] == "" ||
		strings.Count(files["errors.txt"], "the loop does not answer") != 3 {
		t.Errorf("files %v, notes %q, %v", len(files), notes, err)
	}
}

func TestBugreportBadInput(t *testing.T) {
	dir := t.TempDir()
	socket := serveNode(t, reporting("n1"), version)
	tests := map[string]struct {
		cluster *seeingCluster
		args    []string
		code    int
		want    string
	}{
		"no agent":          {nil, []string{"--local", "--admin-socket", dir + "/none.sock", "--file", dir + "/a"}, 1, "nothing could be collected"},
		"no node answers":   {&seeingCluster{sockets: map[string]string{"n1": ""}}, []string{"--file", dir + "/a"}, 1, "nothing could be collected"},
		"older agents":      {&seeingCluster{old: true, sockets: map[string]string{"n1": ""}}, []string{"--file", dir + "/a"}, 1, "older version"},
		"no such folder":    {nil, []string{"--local", "--admin-socket", socket, "--file", dir + "/none/a"}, 1, "no such file or directory"},
		"the file's taken":  {nil, []string{"--local", "--admin-socket", socket, "--file", dir}, 1, "exists, and is not overwritten"},
		"not a folder":      {nil, []string{"--local", "--admin-socket", socket, "--file", "/dev/null/a"}, 1, "not a directory"},
		"an old flag":       {nil, []string{"-o", dir + "/a"}, 2, "unknown shorthand flag"},
		"local and another": {nil, []string{"--local", "--node", "x"}, 2, "exclude each other"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, notes, err := runSeeing(t.Context(), tt.cluster, append([]string{"bugreport"}, tt.args...)...)
			if codeOf(err) != tt.code || !strings.Contains(notes+err.Error(), tt.want) {
				t.Errorf("code %d, %v, notes %s; want %d, %q", codeOf(err), err, notes, tt.code, tt.want)
			}
		})
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAFullDiskLeavesNoHalfReport(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	n := reporting("n1")
	for i := range 3000 { // of which gzip leaves more than fits
		sum := time.Duration(i * 7919 % 100003)
		e := seenEvent(observe.MTLS, "a/"+sum.String(), "c/d", uint16(i))
		n.memory.Flow(e, nil, observe.Peer{})
	}
	_, _, err := runSeeing(t.Context(), nil, "bugreport", "--local", "--admin-socket", serveNode(t, n, version), "--file", dir+"/report.tar.gz")
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAReportReplacesNoFile(t *testing.T) {
	socket := serveNode(t, reporting("n1"), version)
	there := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(there, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(filepath.Dir(there), "link")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{there, link} {
		if _, _, err := runSeeing(t.Context(), nil, "bugreport", "--local", "--admin-socket", socket, "--file", file); codeOf(err) != 1 || !strings.Contains(err.Error(), "is not overwritten") {
			t.Errorf("%s: %v", file, err)
		}
	}
	// One that somebody makes while agents are asked stays, too.
	made := filepath.Join(filepath.Dir(there), "made")
	err := writeWhole(made, func(w io.Writer) error { return os.WriteFile(made, []byte("precious"), 0o600) })
	if !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), made+" is not written") {
		t.Error(err)
	}
	for _, file := range []string{there, made} {
		if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
			t.Errorf("%q, %v", text, err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(there)); err != nil || len(left) != 3 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAReportIsNotWrittenToATerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no terminal can be made here:", err)
	}
	defer terminal.Close()
	if err := (&bugreportFlags{file: "-"}).writable(terminal); err == nil || !strings.Contains(err.Error(), "is a terminal") {
		t.Error(err)
	}
}

func TestWhatAnotherNodeSendsStaysInItsFolder(t *testing.T) {
	evil := func(names ...string) []byte {
		var b bytes.Buffer
		zip := gzip.NewWriter(&b)
		w := tar.NewWriter(zip)
		for _, name := range names {
			_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o777, Size: 1})
			_, _ = w.Write([]byte("x"))
		}
		_, _ = w.Close(), zip.Close()
		return b.Bytes()
	}
	tests := map[string]struct {
		text []byte
		want []string
		err  string
	}{
		"above it":       {evil("../../etc/passwd", "/root/.ssh/id", "a/b/..", "a\x1b[2J"), []string{"n1/_", "n1/_", "n1/a__2J", "n1/id", "n1/passwd"}, ""},
		"no archive":     {[]byte("culvert: panic"), nil, "gzip: invalid header"},
		"cut off":        {evil("a", "b")[:40], nil, "unexpected EOF"},
		"very many":      {evil(slices.Repeat([]string{"a"}, 100)...), slices.Repeat([]string{"n1/a"}, maxPartsOfNode), "more than 32 files"},
		"nothing at all": {nil, nil, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			a := newArchive(&b, "f")
			err := a.addArchive("n1", tt.text)
			if (err == nil) != (tt.err == "") || err != nil && !regexp.MustCompile(tt.err).MatchString(err.Error()) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if err := a.close(nil); err != nil {
				t.Fatal(err)
			}
			zip, err := gzip.NewReader(&b)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for r := tar.NewReader(zip); ; {
				h, err := r.Next()
				if err != nil {
					break
				}
				got = append(got, strings.TrimPrefix(h.Name, "f/"))
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if name == "above it" {
				got, tt.want = slices.Compact(got), slices.Compact(tt.want)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("files %q, want %q", got, tt.want)
			}
		})
	}
}
