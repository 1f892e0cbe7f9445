package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

func newBugreportCommand() *cobra.Command {
	return bugreportCommand(&bugreportFlags{everyNode: everyNode{reach{open: openCluster}}})
}

func bugreportCommand(f *bugreportFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "bugreport",
		Short: "Collect what somebody who helps needs to know in one file",
		Long: `Collect the state of agents in one file: versions, enrolled pods, policies as the agents have them, certificates without
keys, counters and maps of the kernel, the latest connections, what was seen of plaintext, and what the kernel can do.
There are no keys and no tokens in it, but names, labels and addresses of pods, and identities.

What an agent does not tell is noted in the file. A file that exists is never overwritten. The exit code is 1 if anything
is missing in the file, or it could not be written.`,
		Example: `  culvert bugreport
  culvert bugreport --node worker-2 --file worker-2.tar.gz
  culvert bugreport --local --file - | tar tzf -`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return finished(c, f.run(c))
		},
	}
	f.register(c)
	c.Flags().StringVar(&f.file, "file", "", "file to write, or - for standard output (default: culvert-bugreport-TIME.tar.gz)")
	return c
}

type bugreportFlags struct {
	everyNode
	file string
}

func (f *bugreportFlags) run(c *cobra.Command) error {
	ctx := c.Context()
	name := "culvert-bugreport-" + time.Now().UTC().Format("20060102-150405")
	if f.file == "" {
		f.file = name + ".tar.gz"
	}
	if err := f.writable(c.OutOrStdout()); err != nil {
		return err
	}
	cluster, nodes, err := f.agents(ctx, c.ErrOrStderr())
	if err != nil {
		return err
	}
	var notes []string // what is missing
	collect := func(w io.Writer) error {
		a := newArchive(w, name)
		notes = f.collect(ctx, a, cluster, nodes)
		for _, n := range notes {
			fmt.Fprintln(c.ErrOrStderr(), "note:", plain(n))
		}
		if ctx.Err() == nil && a.parts == 0 {
			return errors.New("bugreport: nothing could be collected")
		}
		a.add("version.json", asJSON(map[string]string{"command": version}))
		return errors.Join(ctx.Err(), a.close(notes))
	}
	if f.file == "-" {
		err = collect(c.OutOrStdout())
	} else if err = writeWhole(f.file, collect); err == nil {
		_, err = fmt.Fprintln(c.OutOrStdout(), f.file)
	}
	if err == nil && len(notes) > 0 {
		return &exitError{code: exitBadNews}
	}
	return err
}

// writable says before anybody is asked what would be in the way in the end.
func (f *bugreportFlags) writable(out io.Writer) error {
	if f.file == "-" {
		if isTerminal(out) {
			return errors.New("bugreport: standard output is a terminal: name a file with --file")
		}
		return nil
	}
	if _, err := os.Lstat(f.file); err == nil {
		return fmt.Errorf("bugreport: %s exists, and is not overwritten: name another file with --file", f.file)
	}
	return nil
}

// writeWhole makes the file when all of it is written, and leaves nothing behind when that fails. One that was made in the
// meantime stays.
func writeWhole(path string, write func(io.Writer) error) error {
	t, err := os.CreateTemp(filepath.Dir(path), ".culvert-bugreport-*")
	if err != nil {
		return fmt.Errorf("bugreport: %w", err)
	}
	err = write(t)
	if err == nil {
		err = t.Sync()
	}
	if err = errors.Join(err, t.Close()); err == nil {
		err = renameNew(t.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("bugreport: %s is not written: %w", path, errors.Join(err, os.Remove(t.Name())))
	}
	return nil
}

// renameNew is a rename that replaces nothing, where the file system can promise that.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(from, to)
	}
	return err
}

// collect adds what each node tells, and returns what did not come.
func (f *bugreportFlags) collect(ctx context.Context, a *archive, c cluster, nodes []agentNode) (notes []string) {
	if c == nil {
		return collectHere(ctx, a, f.client())
	}
	var mu sync.Mutex
	all, _ := onEach(ctx, nodes, func(ctx context.Context, node string) (*struct{}, error) { // ctx is looked at by the caller
		text, err := c.Run(ctx, node, "bugreport", "--local", "--file", "-")
		if err != nil {
			err = explainExit(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return nil, errors.Join(err, a.addArchive(node, text))
	})
	for _, n := range silent(all) {
		notes = append(notes, fmt.Sprintf("node %s: %s", n.Node, n.Error))
	}
	return notes
}

// collectHere asks this node's agent everything.
func collectHere(ctx context.Context, a *archive, client *admin.Client) (notes []string) {
	for _, part := range []struct {
		name string
		ask  func() (any, error)
	}{
		{"state.json", func() (any, error) { return client.Bugreport(ctx) }},
		{"certificates.json", func() (any, error) { return client.Certificates(ctx) }},
		{"flows.json", func() (any, error) { return client.Flows(ctx, 0, 0) }},
		{"readiness.json", func() (any, error) { return client.Readiness(ctx, "", observe.DefaultWindow) }},
	} {
		answer, err := part.ask()
		if err != nil {
			notes = append(notes, part.name+": "+err.Error())
			continue
		}
		a.parts++
		a.add(part.name, asJSON(answer))
	}
	return notes
}

func asJSON(v any) []byte {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return []byte(err.Error())
	}
	return append(text, '\n')
}
