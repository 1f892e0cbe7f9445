package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// line is one structured log line; groups are flattened to "group.key".
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

// logFile reads what a process wrote, each line once.
type logFile struct {
	path    string
	offset  int64
	partial []byte
	lines   []line
}

// read returns all lines so far. What is no JSON (a panic, say) is kept as a message.
func (f *logFile) read() ([]line, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("demo: log: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("demo: log: %w", err)
	}
	fresh := make([]byte, max(0, info.Size()-f.offset))
	n, err := file.ReadAt(fresh, f.offset)
	if n < len(fresh) {
		return nil, fmt.Errorf("demo: log %s: %w", f.path, err)
	}
	f.offset += int64(n)
	f.partial = append(f.partial, fresh...)
	for {
		before, after, found := bytes.Cut(f.partial, []byte("\n"))
		if !found {
			return f.lines, nil
		}
		f.lines = append(f.lines, parseLine(before))
		f.partial = after
	}
}

func parseLine(text []byte) line {
	var raw map[string]any
	if err := json.Unmarshal(text, &raw); err != nil {
		return line{"msg": string(text), "raw": true}
	}
	l := line{}
	flatten(l, "", raw)
	return l
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
