package walk

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// counts is what the test application's loop has seen.
type counts struct {
	Tries, Succeeded, Failed int
	Reasons                  map[string]int
	LastError                string
	Steady                   time.Time
	OK                       bool
	SlowestSeconds           float64
}

func (c counts) String() string {
	return fmt.Sprintf("%d of %d ok, slowest %.0f ms %v", c.Succeeded, c.Tries, c.SlowestSeconds*1000, c.Reasons)
}

// loopPort is where a loop's counts are read.
const loopPort = 8181

// looper is a pod that asks again and again.
func looper(namespace, name, node, url string, more string) spec {
	return spec{namespace: namespace, name: name, node: node, labels: map[string]string{"app": name},
		command: fmt.Sprintf("loop --url %s --listen %d %s", url, loopPort, more)}
}

// counted reads a loop's counts.
func (s *suite) counted(ctx context.Context, ref string) (counts, error) {
	var c counts
	p, err := s.pod(ref)
	if err != nil {
		return c, err
	}
	out, err := s.inPod(ctx, p, fmt.Sprintf("curl -s -m 5 http://127.0.0.1:%d/", loopPort))
	if err != nil {
		return c, fmt.Errorf("counts of %s: %w", ref, err)
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		return c, fmt.Errorf("counts of %s: %q: %w", ref, out, err)
	}
	return c, nil
}

// tally is the counts of loops at one moment.
type tally map[string]counts

func (s *suite) tally(ctx context.Context, refs ...string) (tally, error) {
	t := tally{}
	for _, ref := range refs {
		c, err := s.counted(ctx, ref)
		if err != nil {
			return nil, err
		}
		t[ref] = c
	}
	return t, nil
}

// since is what was added to the counts.
func (t tally) since(before tally, ref string) counts {
	now, then := t[ref], before[ref]
	now.Tries, now.Succeeded, now.Failed = now.Tries-then.Tries, now.Succeeded-then.Succeeded, now.Failed-then.Failed
	reasons := map[string]int{}
	for why, n := range now.Reasons {
		if n -= then.Reasons[why]; n > 0 {
			reasons[why] = n
		}
	}
	now.Reasons = reasons
	return now
}
