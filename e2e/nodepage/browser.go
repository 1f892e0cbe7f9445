// Package nodepage looks at an agent's page with a real browser, without a window. Check is for any agent's page: the
// scripted one of this package's test, or that of a mesh that runs.
package nodepage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

// Process is how a program is started.
type Process struct {
	Cmd   *exec.Cmd
	Start func() error
	Wait  func() error
}

// Here starts programs in the test's own namespaces.
func Here(ctx context.Context, argv ...string) Process {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	return Process{cmd, cmd.Start, cmd.Wait}
}

// On starts programs on a node of a lab.
func On(node *lab.Node) func(context.Context, ...string) Process {
	return func(ctx context.Context, argv ...string) Process {
		cmd := node.Command(ctx, argv...)
		return Process{cmd.Cmd, cmd.Start, cmd.Wait}
	}
}

// patience is how long anything may take: the machine may be busy.
const patience = 30 * time.Second

// Browser is a Chromium that is driven through a pipe (the DevTools protocol). It ends with the test.
type Browser struct {
	t     *testing.T
	write *os.File

	mu      sync.Mutex
	number  int
	waiting map[int]chan message
	tabs    map[string]*Tab // by session
	gone    error
}

// message is either a call, an answer (ID) or an event (Method).
type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// StartBrowser starts one by way of run, which decides the namespaces that it runs in.
func StartBrowser(t *testing.T, run func(ctx context.Context, argv ...string) Process) *Browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("needs Chromium (Debian: apt-get install chromium): %v", err)
	}
	// As root, Chromium has no sandbox. It visits nothing but our own page.
	dir := t.TempDir()
	// Ended by the cleanup, not killed with the context: its children write to the profile until they are told to end.
	process := run(context.WithoutCancel(t.Context()), path, "--headless", "--no-sandbox", "--remote-debugging-pipe", "--user-data-dir="+dir,
		"--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
		"--disable-extensions", "--disable-sync", "--hide-scrollbars", "--renderer-process-limit=4", "about:blank")
	theirRead, write := pipe(t)
	read, theirWrite := pipe(t)
	var log bytes.Buffer
	process.Cmd.ExtraFiles, process.Cmd.Stderr = []*os.File{theirRead, theirWrite}, &log
	process.Cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	process.Cmd.WaitDelay = 5 * time.Second
	if err := process.Start(); err != nil {
		t.Fatalf("chromium: %v", err)
	}
	theirRead.Close()
	theirWrite.Close()
	b := &Browser{t: t, write: write, waiting: map[int]chan message{}, tabs: map[string]*Tab{}}
	var reading sync.WaitGroup
	reading.Go(func() { b.read(read) })
	t.Cleanup(func() {
		_ = b.send(message{ID: 1 << 30, Method: "Browser.close"})
		late := time.AfterFunc(patience, func() { _ = process.Cmd.Process.Kill() })
		_ = process.Wait()
		late.Stop()
		write.Close()
		read.Close()
		reading.Wait()
		if t.Failed() {
			t.Logf("chromium's log:\n%s", log.Bytes())
		}
	})
	return b
}

func pipe(t *testing.T) (read, write *os.File) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return read, write
}

// read hands out answers and events until the browser ends.
func (b *Browser) read(from *os.File) {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadBytes(0)
		var m message
		if err == nil {
			err = json.Unmarshal(line[:len(line)-1], &m)
		}
		b.mu.Lock()
		if err != nil {
			b.gone = fmt.Errorf("chromium is gone: %w", err)
			for id, answer := range b.waiting {
				close(answer)
				delete(b.waiting, id)
			}
			b.mu.Unlock()
			return
		}
		if answer := b.waiting[m.ID]; answer != nil {
			delete(b.waiting, m.ID)
			answer <- m
		} else if tab := b.tabs[m.Session]; tab != nil && m.Method != "" {
			tab.event(m)
		}
		b.mu.Unlock()
	}
}

func (b *Browser) send(m message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = b.write.Write(append(line, 0))
	return err
}

// call waits for the answer to a method, and reads it into result unless that is nil.
func (b *Browser) call(session, method string, params, result any) error {
	raw, err := json.Marshal(params)
	if err != nil {
		return err
	}
	answer := make(chan message, 1)
	b.mu.Lock()
	b.number++
	id := b.number
	b.waiting[id] = answer
	err = b.gone
	if err == nil {
		err = b.send(message{ID: id, Session: session, Method: method, Params: raw})
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case m, ok := <-answer:
		switch {
		case !ok:
			return fmt.Errorf("%s: the browser ended", method)
		case m.Error != nil:
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		case result != nil:
			return json.Unmarshal(m.Result, result)
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s: %w", method, errNoAnswer)
	}
}

var errNoAnswer = errors.New("the browser does not answer")
