package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
	"github.com/culvert-mesh/culvert/agent/source"
)

const (
	// maxListed bounds what is named of a kind of trouble; the count tells the rest.
	maxListed = 20
	// maxForeignPods bounds the namespaces that are entered for one question.
	maxForeignPods = 1024
	// almostFull is the part of a map, in percent, from which on it is trouble.
	almostFull = 90
)

// staleness may be implemented by a source: what of it is not up to date, in words. It is called by any goroutine.
type staleness interface{ Stale() []string }

// standing is what the loop knows of the node's state.
type standing struct {
	status   admin.Status
	snapshot *source.Snapshot
	enroll   enroll.Options
	placed   map[string]struct{} // pods that are enrolled, or are to be
	pods     []foreignTarget     // where others' programs are looked for
}

type foreignTarget struct {
	ref      string
	workload datapath.Workload
}

func (t *foreignTarget) close() { t.workload.Netns.Close() }

// Status implements admin.StatusNode.
func (i inspector) Status(ctx context.Context, foreign bool) (*admin.Status, error) {
	var s *standing
	err := i.inspect(ctx, func(a *Agent) error {
		s = a.standing()
		if foreign {
			s.pods = a.foreignTargets()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		for n := range s.pods {
			s.pods[n].close()
		}
	}()
	s.countPods()
	status := &s.status
	if source, ok := i.agent.Source.(staleness); ok {
		status.Source.Stale = source.Stale()
	}
	status.Certificates = certificateStatus(i.agent.keeper.Issuer(), i.agent.keeper.Status(), time.Now())
	status.Kernel = kernelStatus()
	if err := fillKernel(ctx, status, i.agent.path, s.pods, foreign); err != nil {
		return nil, err
	}
	status.Version = i.agent.Version
	for n := range status.Tunnels {
		status.Tunnels[n].Skew = skewOf(status.Version, status.Tunnels[n].Version)
	}
	status.Problems = append(status.Problems, problemsOf(status)...)
	return status, nil
}

// standing collects what only the loop may look at.
func (a *Agent) standing() *standing {
	s := &standing{
		snapshot: a.snapshot, enroll: a.Enroll, placed: map[string]struct{}{},
		status: admin.Status{Node: a.Node, Started: a.started, Ready: a.snapshot != nil, Tunnels: []admin.TunnelStatus{}, Problems: []string{}},
	}
	status := &s.status
	status.Source.Generation = a.generation
	for session := range a.sessions {
		status.Tunnels = append(status.Tunnels, session.forPeople())
	}
	slices.SortFunc(status.Tunnels, func(x, y admin.TunnelStatus) int { return x.ConnectedSince.Compare(y.ConnectedSince) })
	status.Workloads.Enrolled = len(a.byPod)
	for ref := range a.byPod {
		s.placed[ref] = struct{}{}
	}
	for ref, pod := range a.wanted {
		s.placed[ref] = struct{}{}
		if a.byPod[ref] != nil || a.hasEnded(pod) {
			continue
		}
		why := cmp.Or(a.unenrollable[ref], "not yet: its network namespace is looked for")
		status.Workloads.Failing = append(status.Workloads.Failing, admin.WorkloadProblem{Workload: ref, Problem: why})
	}
	failing := &status.Workloads
	slices.SortFunc(failing.Failing, func(x, y admin.WorkloadProblem) int { return cmp.Compare(x.Workload, y.Workload) })
	failing.FailingCount, failing.Failing = len(failing.Failing), firstOf(failing.Failing)
	if a.incomplete {
		status.Problems = append(status.Problems, "the kernel did not take all of it: "+cmp.Or(a.reported["captured addresses"], "see the agent's log"))
	}
	return s
}

// forPeople is the session as status shows it.
func (s *session) forPeople() admin.TunnelStatus {
	return admin.TunnelStatus{Version: s.version(), ConnectedSince: s.since}
}

// skewOf says that agent and tunnel are not of one version, or "".
func skewOf(agent, tunnel string) string {
	switch {
	case agent == tunnel || agent == "" || tunnel == "": // one of them has none
		return ""
	case tunnel == admin.VersionUnknown:
		return fmt.Sprintf("the tunnel is of an older version than the agent, %s: an update is under way, or has stopped half-way", agent)
	}
	return fmt.Sprintf("the tunnel is Culvert %s, the agent %s: an update is under way, or has stopped half-way", tunnel, agent)
}

func firstOf[T any](all []T) []T { return all[:min(len(all), maxListed)] }

// foreignTargets are namespaces to look into, open for whoever is beside the loop.
func (a *Agent) foreignTargets() []foreignTarget {
	var all []foreignTarget
	for ref, w := range a.byPod {
		if len(all) == maxForeignPods {
			break
		}
		netns, err := w.netns.Duplicate()
		if err != nil {
			continue
		}
		all = append(all, foreignTarget{ref, datapath.Workload{Cookie: w.id, Netns: netns, IPv4: w.address(false), IPv6: w.address(true)}})
	}
	slices.SortFunc(all, func(x, y foreignTarget) int { return cmp.Compare(x.ref, y.ref) })
	return all
}

// countPods adds what the snapshot tells; it looks at all pods of the node, and so beside the loop.
func (s *standing) countPods() {
	if s.snapshot == nil {
		return
	}
	status := &s.status
	status.Source.Pods = s.snapshot.Pods()
	status.Source.RejectedCount = len(s.snapshot.Problems)
	for _, p := range firstOf(s.snapshot.Problems) {
		status.Source.Rejected = append(status.Source.Rejected, p.Object+": "+p.Err.Error())
	}
	reasons := map[string]int{}
	for ref, pod := range s.snapshot.Local() {
		if _, ok := s.placed[ref]; ok {
			continue
		}
		reasons[enroll.Decide(s.snapshot.Namespace(pod.Namespace), pod, s.enroll).Reason]++
	}
	for reason, n := range reasons {
		status.Workloads.NotEnrolled = append(status.Workloads.NotEnrolled, admin.ReasonCount{Reason: reason, Count: n})
	}
	slices.SortFunc(status.Workloads.NotEnrolled, func(x, y admin.ReasonCount) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), cmp.Compare(x.Reason, y.Reason))
	})
}

func certificateStatus(issuer string, all []identity.Status, now time.Time) admin.CertificateStatus {
	c := admin.CertificateStatus{Source: issuer, Total: len(all)}
	for _, s := range all {
		if s.Err != nil {
			c.Failing++
			c.LastError = s.Err.Error()
		}
		chain, err := svidcheck.Parse(s.Chain)
		if err != nil || len(chain) == 0 {
			c.Missing++
			continue
		}
		ends := chain[0].NotAfter
		if !now.Before(ends) {
			c.Expired++
		}
		if c.NextExpiry == nil || ends.Before(*c.NextExpiry) {
			c.NextExpiry = &ends
		}
	}
	return c
}

func kernelStatus() admin.KernelStatus {
	k := admin.KernelStatus{}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		k.Release = unix.ByteSliceToString(name.Release[:])
	}
	for _, f := range datapath.Probe() {
		if f.Err != nil {
			k.Missing = append(k.Missing, admin.MissingFeature{Name: f.Name, Needed: f.Needed, Optional: f.Optional, Error: f.Err.Error()})
		}
	}
	return k
}

// statusKernel is what status asks of the datapath.
type statusKernel interface {
	Fill() ([]datapath.Fill, error)
	Counters() (map[string]uint64, error)
	ForeignOnNode() ([]datapath.Foreign, error)
	ForeignOnPod(datapath.Workload) ([]datapath.Foreign, error)
}

// fillKernel adds what the kernel tells. A pod that ends meanwhile is left out.
func fillKernel(ctx context.Context, s *admin.Status, k statusKernel, pods []foreignTarget, foreign bool) error {
	fills, err := k.Fill()
	for _, f := range fills {
		// Of these the oldest entry makes room.
		recycles := f.Map == "redirects" || f.Map == "plaintext"
		s.Maps = append(s.Maps, admin.MapStatus{Name: f.Map, Entries: f.Entries, MaxEntries: f.Max, Recycles: recycles})
	}
	counters, counterErr := k.Counters()
	if err := errors.Join(err, counterErr); err != nil {
		return err
	}
	s.Counters = counters
	if !foreign {
		return nil
	}
	s.Foreign = []admin.ForeignProgram{}
	node, err := k.ForeignOnNode()
	if err != nil {
		return fmt.Errorf("programs of others: %w", err)
	}
	add := func(ref string, found []datapath.Foreign) {
		for _, f := range found {
			s.Foreign = append(s.Foreign, admin.ForeignProgram{Hook: f.Hook, Workload: ref, ID: f.ID, Name: f.Name})
		}
	}
	add("", node)
	for i := range pods {
		if ctx.Err() != nil {
			return fmt.Errorf("programs of others: %w", ctx.Err())
		}
		if found, err := k.ForeignOnPod(pods[i].workload); err == nil {
			add(pods[i].ref, found)
		}
	}
	return nil
}

// problemsOf says what of a status is trouble.
func problemsOf(s *admin.Status) []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if !s.Ready {
		add("the agent has not read the cluster's state yet: what was in force before it started still is")
	}
	if len(s.Tunnels) == 0 {
		add("no tunnel is connected to the agent: enrolled pods can make no new connection to the mesh, and take no mTLS")
	}
	for _, f := range s.Kernel.Missing {
		if !f.Optional {
			add("the kernel lacks %s (%s)", f.Name, f.Needed)
		}
	}
	for _, f := range s.Workloads.Failing {
		add("pod %s is to be enrolled and is not: %s", f.Workload, f.Problem)
	}
	if more := s.Workloads.FailingCount - len(s.Workloads.Failing); more > 0 {
		add("%d more pods are to be enrolled and are not", more)
	}
	if n := s.Certificates.Expired; n > 0 {
		add("%d certificates have expired", n)
	}
	if n := s.Certificates.Failing; n > 0 {
		add("%d certificates cannot be had or renewed: %s", n, s.Certificates.LastError)
	}
	for _, text := range s.Source.Stale {
		add("API server: %s", text)
	}
	if n := s.Source.RejectedCount; n > 0 {
		add("%d objects cannot be used, what was in force stays; the first: %s", n, s.Source.Rejected[0])
	}
	for _, m := range s.Maps {
		if !m.Recycles && m.MaxEntries > 0 && m.Entries*100 >= m.MaxEntries*almostFull {
			add("map %s of the kernel is almost full: %d of %d entries", m.Name, m.Entries, m.MaxEntries)
		}
	}
	return all
}
