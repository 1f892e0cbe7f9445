package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/source"
)

func TestStandingCountsPods(t *testing.T) {
	c := cluster()
	for n := range 30 {
		c.Problems = append(c.Problems, source.Problem{Object: fmt.Sprint("PeerAuthentication shop/", n), Err: errors.New("mode is unknown")})
	}
	_, i := answering(t, c)
	var s *standing
	onLoop(t, i, func(a *Agent) {
		a.unenrollable["shop/late"], a.incomplete = "its address is another's", true
		a.reported["captured addresses"] = "no room"
		s = a.standing()
	})
	s.countPods()
	w := s.status.Workloads
	if w.Enrolled != 1 || w.FailingCount != 1 || w.Failing[0] != (admin.WorkloadProblem{Workload: "shop/late", Problem: "its address is another's"}) {
		t.Errorf("%+v", w)
	}
	want := []admin.ReasonCount{{Reason: "hostNetwork", Count: 1}, {Reason: "neither namespace nor pod asks for it", Count: 1}}
	if !slices.Equal(w.NotEnrolled, want) || w.NotEnrolledCount() != 2 {
		t.Errorf("%+v, want %+v", w.NotEnrolled, want)
	}
	if src := s.status.Source; src.Pods != 6 || src.RejectedCount != 30 || len(src.Rejected) != maxListed {
		t.Errorf("%+v", src)
	}
	if !s.status.Ready || len(s.status.Tunnels) != 1 || !hasText(s.status.Problems, "did not take all of it: no room") {
		t.Errorf("%+v", s.status)
	}
}

func TestProblemsAreNamed(t *testing.T) {
	healthy := admin.Status{Ready: true, Tunnels: []admin.TunnelStatus{{}},
		Maps:   []admin.MapStatus{{Name: "plaintext", Entries: 10, MaxEntries: 10, Recycles: true}, {Name: "modes", Entries: 89, MaxEntries: 100}},
		Kernel: admin.KernelStatus{Missing: []admin.MissingFeature{{Name: "error of a refused connect", Optional: true}}}}
	if p := problemsOf(&healthy); len(p) != 0 {
		t.Errorf("a healthy node has %q", p)
	}
	bad := admin.Status{
		Kernel:       admin.KernelStatus{Missing: []admin.MissingFeature{{Name: "tcx", Needed: "Linux 6.6"}}},
		Workloads:    admin.WorkloadStatus{Failing: []admin.WorkloadProblem{{Workload: "a/b", Problem: "why"}}, FailingCount: 25},
		Certificates: admin.CertificateStatus{Expired: 2, Failing: 3, LastError: "CA is away"},
		Source:       admin.SourceStatus{Stale: []string{"pods: not up to date for 1m0s"}, Rejected: []string{"PeerAuthentication a/b: bad"}, RejectedCount: 1},
		Maps:         []admin.MapStatus{{Name: "modes", Entries: 90, MaxEntries: 100}},
	}
	all := problemsOf(&bad)
	for _, want := range []string{
		"has not read the cluster's state", "no tunnel is connected", "lacks tcx (Linux 6.6)", "pod a/b is to be enrolled and is not: why",
		"24 more pods", "2 certificates have expired", "3 certificates cannot be had or renewed: CA is away", "API server: pods: not up to date",
		"1 objects cannot be used", "map modes of the kernel is almost full: 90 of 100",
	} {
		if !hasText(all, want) {
			t.Errorf("no problem %q in %q", want, all)
		}
	}
	if len(all) != 10 {
		t.Errorf("%d problems: %q", len(all), all)
	}
}

func TestCertificatesAreSummed(t *testing.T) {
	issuer := newCounting(t)
	svid, err := issuer.InProcess.Issue(t.Context(), principal("cart"))
	if err != nil {
		t.Fatal(err)
	}
	leaf := svid.Certificates[0]
	chain := [][]byte{leaf.Raw}
	all := []identity.Status{{Chain: chain}, {Chain: chain, Err: errors.New("away")}, {}, {Chain: [][]byte{[]byte("garbage")}}}
	c := certificateStatus("CA", all, time.Now())
	if c.Total != 4 || c.Missing != 2 || c.Failing != 1 || c.Expired != 0 || c.LastError != "away" || !c.NextExpiry.Equal(leaf.NotAfter) {
		t.Errorf("%+v", c)
	}
	if c = certificateStatus("CA", all, leaf.NotAfter); c.Expired != 2 {
		t.Errorf("%+v", c)
	}
}

// fakeKernel has one map and, on every hook, one program of somebody else.
type fakeKernel struct{ err error }

func (k fakeKernel) Fill() ([]datapath.Fill, error) {
	return []datapath.Fill{{Map: "modes", Entries: 1, Max: 2}, {Map: "plaintext", Entries: 2, Max: 2}}, k.err
}

func (fakeKernel) Counters() (map[string]uint64, error) {
	return map[string]uint64{"strict_refused": 3}, nil
}

func (fakeKernel) ForeignOnNode() ([]datapath.Foreign, error) {
	return []datapath.Foreign{{Hook: "connect", ID: 1, Name: "cil_sock4_connect"}}, nil
}

func (fakeKernel) ForeignOnPod(w datapath.Workload) ([]datapath.Foreign, error) {
	if w.Cookie == 0 {
		return nil, errors.New("it ended")
	}
	return []datapath.Foreign{{Hook: "sk_lookup", ID: 2}}, nil
}

func TestForeignProgramsAreLookedForOnRequestOnly(t *testing.T) {
	pods := []foreignTarget{{"a/b", datapath.Workload{Cookie: 1}}, {"a/gone", datapath.Workload{}}}
	var s admin.Status
	if err := fillKernel(t.Context(), &s, fakeKernel{}, pods, false); err != nil || s.Foreign != nil || s.Maps[0].Entries != 1 || s.Maps[0].Recycles || !s.Maps[1].Recycles || s.Counters["strict_refused"] != 3 {
		t.Errorf("%v: %+v", err, s)
	}
	s = admin.Status{}
	if err := fillKernel(t.Context(), &s, fakeKernel{}, pods, true); err != nil {
		t.Fatal(err)
	}
	want := []admin.ForeignProgram{{Hook: "connect", ID: 1, Name: "cil_sock4_connect"}, {Hook: "sk_lookup", Workload: "a/b", ID: 2}}
	if !slices.Equal(s.Foreign, want) {
		t.Errorf("%+v, want %+v", s.Foreign, want)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fillKernel(ended, &s, fakeKernel{}, pods, true); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	if err := fillKernel(t.Context(), &s, fakeKernel{errors.New("map modes: denied")}, nil, false); err == nil {
		t.Error("a map that cannot be read is no error")
	}
}
