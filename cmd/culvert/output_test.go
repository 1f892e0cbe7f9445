package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTablesLineUpAndWhatOthersChoseIsPlain(t *testing.T) {
	rows := [][]cell{{{"é", green}, {text: ""}}, {{text: "long"}, {text: "a\x1b[2Jb\nc"}}}
	if got := rendered(false, func(s *screen) { s.table([]string{"A", "B"}, rows) }); got != "A     B\né     -\nlong  a?[2Jb?c\n" {
		t.Errorf("%q", got)
	}
	s := &screen{colours: true}
	s.table([]string{"A", "B"}, [][]cell{{{"x", red}, {text: "y"}}})
	if got := s.text.String(); got != "\x1b[1mA\x1b[0m  \x1b[1mB\x1b[0m\n\x1b[31mx\x1b[0m  y\n" {
		t.Errorf("%q", got)
	}
}

func TestColoursAreForTerminals(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if hasColours(&bytes.Buffer{}) || hasColours(file) {
		t.Error("a file has colours")
	}
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no terminal can be made here:", err)
	}
	defer terminal.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if !hasColours(terminal) {
		t.Error("a terminal has none")
	}
	t.Setenv("NO_COLOR", "1")
	if hasColours(terminal) {
		t.Error("in spite of NO_COLOR")
	}
}

func TestYAMLKeepsOrderAndQuotesWhatIsNoString(t *testing.T) {
	var b strings.Builder
	v := struct {
		Z string         `json:"z"`
		A []string       `json:"a"`
		M map[string]int `json:"m,omitempty"`
		E []string       `json:"e"`
	}{"123", []string{"true", "x: y", ""}, nil, []string{}}
	if err := writeYAML(&b, v); err != nil {
		t.Fatal(err)
	}
	if want := "z: \"123\"\na:\n  - \"true\"\n  - 'x: y'\n  - \"\"\ne: []\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestHelpOnExitCodes(t *testing.T) {
	var out bytes.Buffer
	c := newRootCommand()
	c.SetArgs([]string{"help", "exit-codes"})
	c.SetOut(&out)
	if err := c.Execute(); err != nil || !strings.Contains(out.String(), "\n  2    the command was not understood") {
		t.Errorf("%v: %s", err, out.String())
	}
}
