package kube

import (
	"errors"

	"github.com/culvert-mesh/culvert/agent/source/kube/report"
	"github.com/culvert-mesh/culvert/policy"
)

var errSelectorInRoot = errors.New("a selector in the mesh's root namespace selects nothing: the policy is ignored")

// ignored tells what is valid and without effect. It is no problem of the source: nothing is missing.
func ignored(root string) func(*policy.PeerAuthentication) error {
	return func(p *policy.PeerAuthentication) error {
		if p.Namespace == root && len(p.Selector) > 0 {
			return errSelectorInRoot
		}
		return nil
	}
}

// verdicts are all policies with what became of them, for those who tell their authors.
func (s *state) verdicts() (valid []report.PolicyRef, problems []report.PolicyProblem) {
	valid, problems = s.policies.verdicts(nil, nil)
	return s.rules.verdicts(valid, problems)
}

// untold reports whether a policy came, went or changed since the last call.
func (s *state) untold() bool {
	news := s.policies.untold || s.rules.untold
	s.policies.untold, s.rules.untold = false, false
	return news
}

func (t *istioTable[T]) verdicts(valid []report.PolicyRef, problems []report.PolicyProblem) ([]report.PolicyRef, []report.PolicyProblem) {
	for namespace, objects := range t.objects {
		for name, e := range objects {
			ref := report.PolicyRef{Kind: t.kind, Namespace: namespace, Name: name, UID: e.uid, Generation: e.generation}
			err := e.err
			if err == nil && t.ignored != nil {
				err = t.ignored(e.good)
			}
			if err != nil {
				problems = append(problems, report.PolicyProblem{PolicyRef: ref, Err: err})
				continue
			}
			valid = append(valid, ref)
		}
	}
	return valid, problems
}
