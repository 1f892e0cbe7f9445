package walk

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Where client and server are.
const (
	sameNode    = "same node"
	acrossNodes = "across nodes"
	anywhere    = "-"
)

// group is rows that share a state of the cluster.
type group struct {
	name     string
	always   bool // also played when other rows were asked for
	last     bool // left out when everything is kept
	setup    func(context.Context, *suite) error
	teardown func(context.Context, *suite) error
	rows     []row
}

func (g group) full(r row) string {
	if r.where == anywhere {
		return g.name + ": " + r.name
	}
	return g.name + ": " + r.name + " (" + r.where + ")"
}

// row is one expectation. do returns what came of it in words; an error says that it is not what was expected.
type row struct {
	name, where, expected string
	nodes                 bool // needs access to the nodes
	vital                 bool // nothing can be tested without it
	limit                 time.Duration
	do                    func(context.Context, *suite) (string, error)
}

func (r row) limitOr(d time.Duration) time.Duration {
	if r.limit > 0 {
		return r.limit
	}
	return d
}

// State is what became of a row.
type State string

// The states.
const (
	Passed  State = "ok"
	Failed  State = "FAIL"
	Skipped State = "skip"
)

// Row is a line of the result.
type Row struct {
	Group, Name, Where, Expected, Got string
	State                             State
	Problem                           string
	Took                              time.Duration
}

func (r Row) summary() string {
	text := fmt.Sprintf("%-4s %s: %s (%s): %s [%s]", r.State, r.Group, r.Name, r.Where, r.Got, r.Took.Round(10*time.Millisecond))
	if r.Problem != "" {
		text += ": " + r.Problem
	}
	return text
}

// Result is a run.
type Result struct {
	Rows      []Row
	Took      time.Duration
	Diagnosis string // folder with logs, after a failure
}

func (r *Result) add(g group, one row, took time.Duration, got string, err error) Row {
	line := Row{Group: g.name, Name: one.name, Where: one.where, Expected: one.expected, Got: got, State: Passed, Took: took}
	if err != nil {
		line.State, line.Problem = Failed, err.Error()
	}
	r.Rows = append(r.Rows, line)
	return line
}

func (r *Result) skip(g group, one row, why string) {
	r.Rows = append(r.Rows, Row{Group: g.name, Name: one.name, Where: one.where, Expected: one.expected, Got: why, State: Skipped})
}

func (r *Result) count(s State) int {
	n := 0
	for _, row := range r.Rows {
		if row.State == s {
			n++
		}
	}
	return n
}

func (r *Result) failed() int { return r.count(Failed) }

// OK reports whether rows were played and none failed.
func (r *Result) OK() bool { return r.failed() == 0 && r.count(Passed) > 0 }

// Write prints the table, what is wrong, and the line of counts.
func (r *Result) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tGROUP\tROW\tWHERE\tEXPECTED\tGOT\tTIME")
	last := ""
	for _, row := range r.Rows {
		name := row.Group
		if name == last {
			name = ""
		}
		last = row.Group
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.State, name, row.Name, row.Where, row.Expected, oneLine(row.Got),
			row.Took.Round(10*time.Millisecond))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	for _, row := range r.Rows {
		if row.State == Failed {
			fmt.Fprintf(w, "\n%s\n", row.summary())
		}
	}
	if r.Diagnosis != "" {
		fmt.Fprintf(w, "\nlogs, events and pods: %s\n", r.Diagnosis)
	}
	_, err := fmt.Fprintf(w, "\nin %s\n%d passed, %d failed, %d skipped\n", r.Took.Round(time.Second), r.count(Passed), r.failed(), r.count(Skipped))
	return err
}

// oneLine keeps a cell of the table short.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 90
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
