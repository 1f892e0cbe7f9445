package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// output is how an answer is written.
type output struct {
	format string
	also   []string // formats that this command alone has
}

const outputUsage = "table, wide, json or yaml"

func (o *output) formats() []string {
	return append([]string{"table", "wide", "json", "yaml"}, o.also...)
}

func (o *output) register(c *cobra.Command) {
	c.Flags().StringVarP(&o.format, "output", "o", "table", strings.Join(append([]string{outputUsage}, o.also...), "; or "))
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(o.formats(), cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

func (o *output) check() error { return oneOf("-o", o.format, o.formats()...) }

// write writes v, or, for people, what show makes of it.
func (o *output) write(w io.Writer, v any, show func(*screen)) error {
	var err error
	switch o.format {
	case "json":
		err = writeJSON(w, v)
	case "yaml":
		err = writeYAML(w, v)
	default:
		s := &screen{wide: o.format == "wide", colours: hasColours(w)}
		show(s)
		_, err = io.WriteString(w, s.text.String())
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// writeYAML writes the fields that JSON has, in their order.
func writeYAML(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(text, &node); err != nil {
		return err
	}
	blockStyle(&node)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return err
	}
	_, err = w.Write(b.Bytes())
	return err
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// hasColours reports whether w is a terminal whose owner did not ask for plain text.
func hasColours(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// colour is the number of a terminal's; 0 is none.
type colour int

const (
	red    colour = 31
	green  colour = 32
	yellow colour = 33
	bold   colour = 1
)

// screen is text for people. What others chose is made plain on its way there.
type screen struct {
	text    strings.Builder
	wide    bool
	colours bool
}

func (s *screen) paint(c colour, text string) string {
	if c == 0 || !s.colours {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// line writes one line.
func (s *screen) line(format string, args ...any) { fmt.Fprintf(&s.text, format+"\n", args...) }

// cell is one field of a table.
type cell struct {
	text   string
	colour colour
}

func cells(texts ...string) []cell {
	row := make([]cell, 0, len(texts))
	for _, t := range texts {
		row = append(row, cell{text: t})
	}
	return row
}

// table writes rows below each other. An empty field is a dash.
func (s *screen) table(header []string, rows [][]cell) {
	all := append([][]cell{cells(header...)}, rows...)
	widths := make([]int, len(header))
	for _, row := range all {
		for i := range row {
			row[i].text = plain(cmp.Or(row[i].text, "-"))
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	for n, row := range all {
		for i, c := range row {
			if n == 0 {
				c.colour = bold
			}
			s.text.WriteString(s.paint(c.colour, c.text))
			if i < len(row)-1 {
				s.text.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		s.text.WriteString("\n")
	}
}

// facts writes names and what they are, one a line; one that is empty is left out.
func (s *screen) facts(all ...[2]string) {
	width := 0
	for _, f := range all {
		if f[1] != "" {
			width = max(width, len(f[0]))
		}
	}
	for _, f := range all {
		if f[1] != "" {
			s.line("%s%s  %s", s.paint(bold, f[0]), strings.Repeat(" ", width-len(f[0])), plain(f[1]))
		}
	}
}

// list writes lines below a title, none if there are none.
func (s *screen) list(title string, c colour, all []string) {
	if len(all) == 0 {
		return
	}
	s.line("\n%s", title)
	for _, text := range all {
		s.line("  %s %s", s.paint(c, "!"), plain(text))
	}
}
