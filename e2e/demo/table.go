package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Result is a whole run.
type Result struct {
	OK    bool          `json:"ok"`
	Rows  []Row         `json:"rows"`
	Error string        `json:"error,omitempty"` // what ended the run early
	Kept  bool          `json:"kept,omitempty"`  // everything was left standing
	Took  time.Duration `json:"took"`
}

// summary is the row as a line of progress.
func (r Row) summary() string {
	mark := "ok  "
	if !r.OK {
		mark = "FAIL"
	}
	s := fmt.Sprintf("%s %s: %s -> %s (IPv%d): %s", mark, r.Step, r.From, r.To, r.IP, r.Got)
	if len(r.Problems) > 0 {
		s += "; " + strings.Join(r.Problems, "; ")
	}
	return s
}

// carrier is how the row was carried, with both identities where they were proved.
func (r Row) carrier() string {
	if !strings.HasPrefix(r.Got, "ok") && r.Source == "" {
		return "-"
	}
	if r.Source == "" || r.CarriedBy == byPlaintext {
		return r.CarriedBy
	}
	short := func(id string) string { return strings.TrimPrefix(id, "spiffe://"+trustDomain+"/") }
	return fmt.Sprintf("%s %s => %s", r.CarriedBy, short(r.Source), short(r.Destination))
}

// WriteTable writes the result for people.
func (r *Result) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tSTEP\tIP\tFROM\tTO\tEXPECTED\tGOT\tCARRIED BY\tDECIDED BY\tBETWEEN THE NODES\tTIME")
	last := ""
	for _, row := range r.Rows {
		step, mark := row.Step, "ok"
		if step == last {
			step = ""
		}
		last = row.Step
		if !row.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(t, "%s\t%s\tv%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", mark, step, row.IP, row.From, row.To,
			row.Expected, row.Got, row.carrier(), row.DecidedBy, row.Link, row.Took.Round(10*time.Microsecond))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("demo: write table: %w", err)
	}
	failed := 0
	for _, row := range r.Rows {
		if !row.OK {
			failed++
			fmt.Fprintln(w, row.summary())
		}
	}
	_, err := fmt.Fprintf(w, "\n%d rows, %d as expected, in %s. Identities are below spiffe://%s/.\n",
		len(r.Rows), len(r.Rows)-failed, r.Took.Round(100*time.Millisecond), trustDomain)
	return err
}

// WriteJSON writes the result for programs.
func (r *Result) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("demo: write result: %w", err)
	}
	return nil
}
