package main

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// runRoot runs the whole command line as a shell would, but for the process.
func runRoot(args ...string) (stdout string, err error) {
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(io.Discard)
	err = root.Execute()
	return out.String(), err
}

// visible are the commands that people see, by what they type.
func visible() map[string]*cobra.Command {
	all := map[string]*cobra.Command{}
	var add func(*cobra.Command)
	add = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		all[strings.TrimSpace(strings.TrimPrefix(c.CommandPath(), c.Root().Name()))] = c
		for _, below := range c.Commands() {
			add(below)
		}
	}
	add(newRootCommand())
	return all
}

func TestWhatIsNotUnderstoodEndsWithTwo(t *testing.T) {
	for path, c := range visible() {
		if !c.Runnable() {
			continue // a page of help
		}
		words := strings.Fields(path)
		for what, args := range map[string][]string{
			"too many arguments": append(slices.Clone(words), "a/b", "c/d", "e/f", "g/h", "i/j"),
			"an unknown flag":    append(slices.Clone(words), "--no-such-flag"),
			"an unknown letter":  append(slices.Clone(words), "-Z"),
		} {
			if _, err := runRoot(args...); codeOf(err) != exitUsage || !strings.Contains(err.Error(), "--help") {
				t.Errorf("culvert %s, %s: code %d, %v", path, what, codeOf(err), err)
			}
		}
	}
}

func TestCommandsThatAreMistyped(t *testing.T) {
	for args, want := range map[string]string{
		"stauts":                `unknown command "stauts" for "culvert"; did you mean status?`,
		"describe deployment x": `unknown command "deployment" for "culvert describe"`,
		"policy lnit":           "did you mean lint?",
		"ca rotation":           `unknown command "rotation" for "culvert ca"`,
		"ca rotate leaf":        `invalid argument "leaf"`,
		"status --nod x":        "unknown flag: --nod",
		"status --node":         "needs an argument",
		"flows --port 99999":    "invalid argument",
		"ca --svid-ttl 1ns":     "--svid-ttl 1ns is less than",
		"ca --trust-domain A/B": `--trust-domain "A/B"`,
		"flows --since -1s":     "must not be negative",
		"bugreport -o x":        "unknown shorthand flag",
		"completion tcsh":       `unknown command "tcsh"`,
		"help stauts":           "did you mean status?",
		"help describe node":    `unknown command "node" for "culvert describe"`,
	} {
		if _, err := runRoot(strings.Fields(args)...); codeOf(err) != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("culvert %s: code %d, %v, want %q", args, codeOf(err), err, want)
		}
	}
	for _, args := range []string{"", "describe", "policy", "completion", "help", "help describe"} {
		if out, err := runRoot(strings.Fields(args)...); err != nil || !strings.Contains(out, "Available Commands") {
			t.Errorf("culvert %s: %v\n%s", args, err, out)
		}
	}
}

// badNews are the commands whose exit code is 1 for an answer that is no error.
func badNews() []string {
	return []string{"status", "can", "flows", "readiness", "bugreport", "certs verify", "policy lint", "policy explain", "check", "demo"}
}

func TestHelpIsComplete(t *testing.T) {
	all := visible()
	for path, c := range all {
		switch {
		case path != "" && c.Runnable() && c.Example == "":
			t.Errorf("culvert %s has no example", path)
		case c.Short == "" || strings.HasSuffix(c.Short, "."):
			t.Errorf("culvert %s: %q", path, c.Short)
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(line, "  ") {
				t.Errorf("culvert %s: example %q", path, line)
			}
		}
	}
	for _, path := range badNews() {
		if c := all[path]; c == nil || !strings.Contains(c.Long, "xit code") {
			t.Errorf("culvert %s does not say what its exit codes mean", path)
		}
	}
}

// TestExamplesAreUnderstood has the flags and arguments of each example read.
func TestExamplesAreUnderstood(t *testing.T) {
	for path, c := range visible() {
		for line := range strings.Lines(c.Example) {
			for _, part := range strings.Split(line, "|") {
				words := strings.Fields(part)
				if len(words) == 0 || words[0] != "culvert" {
					continue
				}
				if at := slices.IndexFunc(words, func(w string) bool { return w == ">" }); at >= 0 {
					words = words[:at]
				}
				found, rest, err := newRootCommand().Find(words[1:])
				if err == nil {
					err = found.ParseFlags(rest)
				}
				if err == nil {
					err = found.ValidateArgs(found.Flags().Args())
				}
				if err != nil {
					t.Errorf("culvert %s: %q: %v", path, part, err)
				}
			}
		}
	}
}

// processes are the commands that run for as long as a node does: their flags are about themselves.
func processes() []string {
	return []string{"agent", "tunnel", "ca", "crds", "prepare", "demo", "demo down"}
}

func TestFlagsOfOneNameMeanTheSame(t *testing.T) {
	type use struct{ path, usage, letter, kind string }
	first := map[string]use{}
	for path, c := range visible() {
		if slices.Contains(processes(), path) {
			continue
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			usage := f.Usage
			switch {
			case f.Hidden || f.Name == "help" || f.Name == "no-descriptions":
				return
			case f.Name == "output": // some have formats of their own beside those of all
				usage, _, _ = strings.Cut(usage, ";")
			}
			now := use{path, usage, f.Shorthand, f.Value.Type()}
			was, seen := first[f.Name]
			if !seen {
				first[f.Name] = now
			} else if now.path = was.path; now != was {
				t.Errorf("--%s of culvert %s: %+v, of culvert %s: %+v", f.Name, path, now, was.path, was)
			}
		})
	}
	for path, letter := range map[string]string{"namespace": "n", "output": "o"} {
		if first[path].letter != letter {
			t.Errorf("--%s has the letter %q", path, first[path].letter)
		}
	}
}

// answering are the commands that print an answer: in every format, of every node.
func TestAnswersHaveAllFormats(t *testing.T) {
	all := visible()
	for _, path := range []string{"status", "describe pod", "describe service", "can", "certs", "certs verify", "flows", "readiness",
		"ca status", "policy explain", "policy lint"} {
		flag := all[path].Flags().Lookup("output")
		if flag == nil || !strings.HasPrefix(flag.Usage, outputUsage) || flag.DefValue != "table" {
			t.Errorf("culvert %s: --output %+v", path, flag)
		}
	}
	for _, path := range []string{"status", "describe pod", "describe service", "can", "certs", "certs verify", "flows", "readiness", "bugreport"} {
		for _, name := range []string{"admin-socket", "local", "node", "kubeconfig", "context", "culvert-namespace"} {
			if all[path].Flags().Lookup(name) == nil {
				t.Errorf("culvert %s has no --%s", path, name)
			}
		}
	}
	for _, path := range []string{"ca status", "ca rotate", "check"} {
		if all[path].Flags().Lookup("culvert-namespace") == nil || all[path].Flags().Lookup("namespace") != nil {
			t.Errorf("culvert %s: whose namespace?", path)
		}
	}
}
