package walk

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"sync"
	"time"
)

// line is one structured line of a log; groups are flattened to "group.key".
type line map[string]any

func (l line) get(key string) string {
	if v, ok := l[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

func (l line) when() time.Time {
	t, err := time.Parse(time.RFC3339Nano, l.get("time"))
	if err != nil {
		return time.Time{}
	}
	return t
}

// mostLines bounds what is remembered of each log.
const mostLines = 200_000

// follower reads the logs of agents and tunnels while they are written.
type follower struct {
	mu     sync.Mutex // guards all below
	logs   map[string]*log
	cancel []context.CancelFunc
	wg     sync.WaitGroup
}

// log is what one container wrote since it was followed.
type log struct {
	component, node, pod string
	lines                []line
	ended                bool
}

// follow begins to read the logs of a component's pods that are not yet read.
func (s *suite) follow(ctx context.Context, component string) error {
	pods, err := s.systemPods(ctx, component)
	if err != nil {
		return err
	}
	for node, name := range pods {
		if err := s.followPod(ctx, component, node, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) followPod(ctx context.Context, component, node, name string) error {
	f := &s.logs
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.logs[name]; old != nil && !old.ended {
		return nil
	}
	argv, err := s.Cluster.KubectlCommand(ctx)
	if err != nil {
		return err
	}
	argv = append(argv, "logs", "--follow", "--namespace="+systemNamespace, "--since=2s", name)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // it is ended by close
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return fmt.Errorf("follow the log of pod %s: %w", name, err)
	}
	l := &log{component: component, node: node, pod: name}
	if f.logs == nil {
		f.logs = map[string]*log{}
	}
	if old := f.logs[name]; old != nil {
		l.lines = old.lines
	}
	f.logs[name] = l
	f.cancel = append(f.cancel, cancel)
	f.wg.Go(func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			f.keep(l, lines.Bytes())
		}
		_ = cmd.Wait() // the container's end, or ours
		f.mu.Lock()
		l.ended = true
		f.mu.Unlock()
	})
	return nil
}

// parseLine reads a line of a log. What is no JSON (a panic, say) is kept as a message.
func parseLine(text []byte) line {
	var raw map[string]any
	if err := json.Unmarshal(text, &raw); err != nil {
		raw = map[string]any{"msg": string(text)}
	}
	flat := line{}
	flatten(flat, "", raw)
	return flat
}

func (f *follower) keep(l *log, text []byte) {
	flat := parseLine(text)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(l.lines) >= mostLines {
		l.lines = append(l.lines[:0:0], l.lines[mostLines/2:]...)
	}
	l.lines = append(l.lines, flat)
}

func flatten(into line, prefix string, values map[string]any) {
	for k, v := range values {
		if group, ok := v.(map[string]any); ok {
			flatten(into, prefix+k+".", group)
			continue
		}
		into[prefix+k] = v
	}
}

// lines returns what a component wrote since then, on all nodes.
func (f *follower) lines(component string, since time.Time) []line {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []line
	for _, l := range f.logs {
		if l.component != component {
			continue
		}
		// The last lines first: what is looked for is new.
		for i := len(l.lines) - 1; i >= 0 && !l.lines[i].when().Before(since); i-- {
			found = append(found, l.lines[i])
		}
	}
	return found
}

// close ends all following.
func (f *follower) close() {
	f.mu.Lock()
	for _, cancel := range f.cancel {
		cancel()
	}
	f.mu.Unlock()
	f.wg.Wait()
}
