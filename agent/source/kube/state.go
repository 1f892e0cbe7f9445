package kube

import (
	"log/slog"
	"slices"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

// maxLogged bounds how many problems one change may write to the log.
const maxLogged = 20

// state is everything that is known; it belongs to the goroutine of Run.
type state struct {
	index    *source.Index
	root     string // the mesh's root namespace
	log      *slog.Logger
	services *serviceTables
	ranges   *rangeTables
	policies *istioTable[policy.PeerAuthentication]
	rules    *istioTable[policy.DestinationRule]
	logged   map[string]string // problems that were reported and still last
	frozen   []string          // the namespaces that were reported as unreadable
	outdated bool              // the policies are too old to loosen anything by them
	doubted  bool              // outdated changed since the last flush
}

func newState(node, root string, log *slog.Logger) *state {
	index := source.NewIndex(node)
	s := &state{
		index: index, root: root, log: log,
		services: newServiceTables(index, node),
		ranges:   newRangeTables(node),
		policies: newIstioTable("PeerAuthentication", index.SetPolicies),
		rules:    newIstioTable("DestinationRule", index.SetRules),
		logged:   map[string]string{},
	}
	s.policies.ignored = ignored(root)
	return s
}

// flush brings the index up to date with the tables.
func (s *state) flush() {
	if s.ranges.changed {
		s.ranges.changed = false
		all := s.ranges.all()
		s.index.SetRanges(all)
		s.services.place(all, s.ranges.zone)
	}
	s.services.flush()
	policies, rules := s.policies.flush(), s.rules.flush()
	if doubted := s.doubted; policies || rules || doubted {
		s.doubted = false
		problems, unreadable := s.policies.list()
		if s.outdated && !slices.Contains(unreadable, "") {
			unreadable = append([]string{""}, unreadable...)
		}
		more, _ := s.rules.list()
		problems = append(problems, more...)
		s.index.SetProblems(problems, unreadable)
		s.report(problems)
		s.warn(unreadable)
	}
}

// distrust says whether the policies that are known are outdated, and reports whether that is new.
func (s *state) distrust(outdated bool) bool {
	if outdated == s.outdated {
		return false
	}
	s.outdated, s.doubted = outdated, true
	if outdated {
		s.log.Error("policies have not been read for long: until they are, nothing is loosened and new pods start STRICT")
	} else {
		s.log.Info("policies are read again")
	}
	return true
}

// report logs each problem when it appears and once more when it is gone.
func (s *state) report(problems []source.Problem) {
	now := make(map[string]string, len(problems))
	lines := 0
	for _, p := range problems {
		text := p.Err.Error()
		if now[p.Object] = text; s.logged[p.Object] == text {
			continue
		}
		if lines++; lines <= maxLogged {
			s.log.Error("object not used: its last good version, if it had one, stays in force", "object", p.Object, "error", text)
		}
	}
	for object := range s.logged {
		if _, lasts := now[object]; lasts {
			continue
		}
		if lines++; lines <= maxLogged {
			s.log.Info("object is good again, or gone", "object", object)
		}
	}
	if lines > maxLogged {
		s.log.Error("more objects changed between good and bad", "number", lines-maxLogged)
	}
	s.logged = now
}

// warn says once what it means that a policy was never good.
func (s *state) warn(unreadable []string) {
	for _, namespace := range unreadable {
		where := "namespace " + namespace
		if namespace == "" || namespace == s.root {
			where = "every namespace"
		}
		if !slices.Contains(s.frozen, namespace) && !(namespace == "" && s.outdated) {
			s.log.Error("a policy cannot be read and has no earlier version: nothing may be loosened", "where", where)
		}
	}
	s.frozen = unreadable
}
