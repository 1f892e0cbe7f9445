package agent

import (
	"context"
	"strings"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/telemetry"
	"github.com/culvert-mesh/culvert/policy"
)

func (a *Agent) newMetrics() *telemetry.Metrics {
	return telemetry.New(telemetry.Sources{
		Kernel: a.path, SVIDs: func() []identity.Status { return a.keeper.Status() }, State: inspector{agent: a}.state,
	})
}

// state is what the loop tells Prometheus.
func (i inspector) state(ctx context.Context) (*telemetry.State, error) {
	var (
		s        telemetry.State
		policies *policy.Set
		problems []source.Problem
	)
	err := i.inspect(ctx, func(a *Agent) error {
		s.Sessions = len(a.sessions)
		for _, w := range a.byPod {
			s.Workloads = append(s.Workloads, telemetry.Workload{
				Cookie: w.id, Namespace: w.pod.Namespace, Pod: w.pod.Name, Modes: w.modes,
			})
		}
		for ref := range a.wanted {
			if a.byPod[ref] == nil && a.unenrollable[ref] != "" {
				s.NotEnrolled++
			}
		}
		if policies = a.policies; a.snapshot != nil {
			problems = a.snapshot.Problems
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.Namespaces = map[string]policy.Mode{}
	for _, w := range s.Workloads {
		if _, known := s.Namespaces[w.Namespace]; !known {
			s.Namespaces[w.Namespace] = policies.Effective(policy.Workload{Namespace: w.Namespace}).Mode
		}
	}
	s.Rejected = rejected(problems)
	return &s, nil
}

// rejected counts the objects that cannot be used, by kind. One may have several problems.
func rejected(problems []source.Problem) map[string]int {
	objects, kinds := map[string]struct{}{}, map[string]int{}
	for _, p := range problems {
		if _, known := objects[p.Object]; !known {
			objects[p.Object] = struct{}{}
			kind, _, _ := strings.Cut(p.Object, " ")
			kinds[kind]++
		}
	}
	return kinds
}
