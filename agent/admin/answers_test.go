package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// answers is a fake agent that knows one pod and one Service.
type answers struct{ Node }

func (answers) Status(_ context.Context, foreign bool) (*Status, error) {
	s := &Status{Node: "n1"}
	if foreign {
		s.Foreign = []ForeignProgram{}
	}
	return s, nil
}

func (answers) DescribePod(_ context.Context, pod string) (*PodDescription, error) {
	if pod != "a/b" {
		return nil, fmt.Errorf("pod %s is not known; there are a/b: %w", pod, ErrUnknownWorkload)
	}
	return &PodDescription{Pod: pod}, nil
}

func (answers) DescribeService(_ context.Context, service string) (*ServiceDescription, error) {
	return nil, fmt.Errorf("Service %s is not known: %w", service, ErrUnknownWorkload)
}

func (answers) Can(_ context.Context, q Question) (*Verdict, error) {
	return &Verdict{From: q.From, To: q.To, Outcome: OutcomeMTLS, Tried: &Trial{Outcome: TrialReset}}, nil
}

func (answers) LogLevels(_ context.Context, change LogChange) (*LogLevels, error) {
	return &LogLevels{Agent: change.Agent, Tunnels: []TunnelLevel{{Level: change.Tunnel}}}, nil
}

func TestAnswersComeBackAndAreSigned(t *testing.T) {
	path := socket(t)
	serve(t, path, answers{}, "v1")
	c := NewClient(path, "v1")
	for _, foreign := range []bool{true, false} {
		s, err := c.Status(t.Context(), foreign)
		if err != nil || s.Node != "n1" || s.Version != "v1" || s.Time.IsZero() || (s.Foreign != nil) != foreign {
			t.Errorf("status: %+v, %v", s, err)
		}
	}
	if d, err := c.DescribePod(t.Context(), "a/b"); err != nil || d.Pod != "a/b" || d.Version != "v1" {
		t.Errorf("pod: %+v, %v", d, err)
	}
	v, err := c.Can(t.Context(), Question{From: Outside, To: "a/b"})
	if err != nil || v.From != Outside || v.Version != "v1" || v.OK() {
		t.Errorf("can: %+v, %v", v, err)
	}
	l, err := c.LogLevels(t.Context(), LogChange{Agent: "debug", Tunnel: "WARN"})
	if err != nil || l.Agent != "debug" || l.Tunnels[0].Level != "WARN" || l.Version != "v1" {
		t.Errorf("log levels: %+v, %v", l, err)
	}
	for _, change := range []LogChange{{Agent: "loud"}, {Tunnel: "-8"}, {Tunnel: "INFO+1"}} {
		if _, err := c.LogLevels(t.Context(), change); err == nil || !strings.Contains(err.Error(), "want debug, info, warn, error") {
			t.Errorf("%+v: %v", change, err)
		}
	}
	for name, ask := range map[string]func() error{
		"is not known; there are a/b": func() error { _, err := c.DescribePod(t.Context(), "a/c"); return err },
		"Service a/c is not known":    func() error { _, err := c.DescribeService(t.Context(), "a/c"); return err },
	} {
		if err := ask(); !errors.Is(err, ErrUnknownWorkload) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, ask := range map[string]func() error{
		"name is missing":         func() error { _, err := c.DescribePod(t.Context(), ""); return err },
		"from and to are missing": func() error { _, err := c.Can(t.Context(), Question{From: "a/b"}); return err },
	} {
		if err := ask(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.DescribeService(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "name is missing") {
		t.Error(err)
	}
}
