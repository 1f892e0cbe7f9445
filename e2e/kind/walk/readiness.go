package walk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// readinessWindow is short, so that a workload can be watched for all of it.
const readinessWindow = 8 * time.Second

// readinessOfPort is what culvert readiness says of a port.
type readinessOfPort struct {
	Port         uint16
	Verdict, Why string
	Breaks       []struct{ Name string }
}

// readinessOfSpread asks about a workload that is watched from its pods' start, by two agents.
func readinessOfSpread(ctx context.Context, s *suite) (string, error) {
	here := spec{namespace: walkNamespace, name: "spread-a", node: s.node("a"), account: "spread", labels: map[string]string{"app": "spread"}, command: "serve --http 9080"}
	there := here
	there.name, there.node = "spread-b", s.node("b")
	if err := s.start(ctx, time.Minute, here, there); err != nil {
		return "", err
	}
	defer func() { _ = s.stop(context.WithoutCancel(ctx), walkNamespace, here.name, there.name) }()
	// Rows before may have left it, and what is STRICT is safe already. Those that follow apply it if they need it.
	if err := s.remove(ctx, strictWalk); err != nil {
		return "", err
	}
	from, err := s.pod(nginx)
	if err != nil {
		return "", err
	}
	server := s.pods[walkNamespace+"/spread-b"]
	if _, err := s.want(ctx, 20*time.Second, from, wantOK, page(server.at(4, 9080), "spread")); err != nil {
		return "", err
	}
	if err := s.spreadIs(ctx, "READY", ""); err != nil {
		return "", err
	}
	if here.node != there.node {
		if err := s.spreadIs(ctx, "UNKNOWN", there.node, "--node", here.node); err != nil {
			return "", err
		}
	}
	plain, err := s.pod(auditor)
	if err != nil {
		return "", err
	}
	if _, err := s.want(ctx, 20*time.Second, plain, wantOK, page(server.at(4, 9080), "spread")); err != nil {
		return "", err
	}
	return "each in turn", s.spreadIs(ctx, "NOT READY", auditor)
}

// spreadIs waits until the verdict on the workload is that, for a reason or because of a peer that has the word in it.
func (s *suite) spreadIs(ctx context.Context, verdict, word string, args ...string) error {
	args = append([]string{"readiness", walkNamespace, "--window", readinessWindow.String(), "-o", "json"}, args...)
	return until(ctx, 30*time.Second, func(ctx context.Context) error {
		out, asked := s.culvert(ctx, args...)
		p, err := spreadPort(out)
		if err != nil {
			return errors.Join(err, asked)
		}
		if p.Verdict != verdict || !strings.Contains(fmt.Sprint(p.Why, p.Breaks), word) {
			return fmt.Errorf("culvert %s: want %s (%s), got %+v", strings.Join(args, " "), verdict, word, p)
		}
		return nil
	})
}

func spreadPort(report string) (readinessOfPort, error) {
	var r struct {
		Workloads []struct {
			ServiceAccount string
			Ports          []readinessOfPort
		}
	}
	if err := json.Unmarshal([]byte(report), &r); err != nil {
		return readinessOfPort{}, fmt.Errorf("readiness: %w\n%s", err, report)
	}
	for _, w := range r.Workloads {
		for _, p := range w.Ports {
			if w.ServiceAccount == "spread" && (p.Port == 9080 || p.Port == 0) {
				return p, nil
			}
		}
	}
	return readinessOfPort{}, fmt.Errorf("readiness: no port 9080 of the workload in\n%s", report)
}
