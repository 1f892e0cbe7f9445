package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

var (
	fromLegacy  = observedPeer(observe.Plaintext, observe.Peer{Kind: observe.PeerPod, Name: "old/legacy-1", ServiceAccount: "default", Address: netip.MustParseAddr("10.0.0.9")})
	fromFront   = observedPeer(observe.MTLS, observe.Peer{Kind: observe.PeerPod, Name: "web/front-1", Identity: "spiffe://td/ns/web/sa/front"})
	fromOutside = observedPeer(observe.Plaintext, observe.Peer{Kind: observe.PeerOutside, Address: netip.MustParseAddr("203.0.113.9")})
)

func observedPeer(how observe.Carried, p observe.Peer) admin.ObservedPeer {
	return admin.ObservedPeer{Peer: p, Carried: how, Count: 3, First: time.Now().Add(-time.Hour), Last: time.Now().Add(-time.Minute)}
}

// watchedFor is what a node has seen of shop/cart's port 8080.
func watchedFor(node string, d time.Duration, peers ...admin.ObservedPeer) *admin.Readiness {
	since := time.Now().Add(-d)
	return &admin.Readiness{Form: admin.ReadinessForm, Node: node, Since: since, RootNamespace: "istio-system", KnownNames: []string{"shop"}, ProbesExcluded: 7,
		Workloads: []admin.Observed{{
			Workload: observe.Workload{Namespace: "shop", ServiceAccount: "cart", Pod: "cart-" + node, Labels: map[string]string{"app": "cart"}},
			Pods:     []string{"shop/cart-" + node}, Since: since, Ports: []admin.ObservedPort{{Port: 8080, Declared: true, Peers: peers}},
		}}}
}

func withPolicies(r *admin.Readiness, policies ...admin.Policy) *admin.Readiness {
	r.Policies = policies
	return r
}

const week = 7 * 24 * time.Hour

func TestIsStrictSafe(t *testing.T) {
	strictPolicy := admin.Policy{Namespace: "shop", Name: "strict", Mode: "STRICT"}
	enrolledPeer := fromLegacy
	enrolledPeer.EnrolledNow, enrolledPeer.Why = true, "it was not enrolled when it came last"
	dropped := watchedFor("n1", week, fromFront)
	dropped.Dropped = time.Now().Add(-time.Hour)
	waiting := watchedFor("n1", week, fromFront)
	waiting.NotEnrolled = []admin.NotEnrolled{{Pod: "shop/till-1", Reason: "its namespace was not found", Wanted: true}, {Pod: "shop/plain", Reason: "nobody asks"}}
	optedOut := watchedFor("n1", week, fromFront)
	optedOut.NotEnrolled = waiting.NotEnrolled[1:]
	fromNode := watchedFor("n1", week, fromOutside)
	blind := watchedFor("n1", week, fromFront)
	blind.Workloads[0].Blind = time.Now().Add(-time.Hour)
	spread := watchedFor("n1", week, fromFront)
	spread.Workloads[0].Elsewhere = map[string]time.Time{"n2": time.Now(), "n3": time.Now()}
	anew := watchedFor("n2", time.Minute, fromFront) // its neighbour has known its pods for longer
	knowing := watchedFor("n1", week)
	knowing.Workloads[0].Elsewhere = map[string]time.Time{"n2": time.Now().Add(-48 * time.Hour)}
	alone := watchedFor("n1", week, fromFront)
	alone.EnrolledOn = []string{"n1", "n4"}
	old := watchedFor("n1", week, fromFront)
	old.Form = 0
	refused := fromLegacy
	refused.Carried = observe.Refused
	perPod := admin.Policy{Namespace: "shop", Name: "one", Mode: "STRICT", Selector: map[string]string{"app": "cart", "statefulset.kubernetes.io/pod-name": "cart-0"}}
	otherPod := admin.Policy{Namespace: "shop", Name: "one", Mode: "STRICT", Selector: map[string]string{"app": "till", "statefulset.kubernetes.io/pod-name": "till-0"}}
	neighbour := watchedFor("n2", week)
	neighbour.NodeAddresses = []netip.Addr{fromOutside.Address}
	tests := map[string]struct {
		answers map[string]*admin.Readiness // nil: does not answer
		args    []string
		verdict readinessVerdict
		want    string
	}{
		"mTLS alone":                 {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week, fromFront)}, verdict: verdictReady, want: "STRICT would refuse nobody who came within the last 24h0m"},
		"a plaintext peer":           {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week, fromFront, fromLegacy)}, verdict: verdictNotReady, want: "pod old/legacy-1"},
		"an address outside":         {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week, fromOutside)}, verdict: verdictNotReady, want: "outside the cluster"},
		"another node":               {answers: map[string]*admin.Readiness{"n1": fromNode, "n2": neighbour}, verdict: verdictNotReady, want: "node n2"},
		"enrolled and plaintext":     {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week, enrolledPeer)}, verdict: verdictNotReady, want: "enrolled, but it was not enrolled when it came last"},
		"nobody came":                {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week)}, verdict: verdictReady, want: "nobody came"},
		"not for long":               {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", time.Hour, fromFront)}, verdict: verdictUnknown, want: "watched for 1h0m only, since "},
		"long enough for less":       {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", time.Hour, fromFront)}, args: []string{"--window", "30m"}, verdict: verdictReady},
		"plaintext, not for long":    {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", time.Hour, fromLegacy)}, verdict: verdictNotReady},
		"elsewhere for longer":       {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", time.Minute, fromFront), "n2": watchedFor("n2", week)}, verdict: verdictReady, want: "shop/cart-n1 +1"},
		"a node does not answer":     {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week, fromFront), "n2": nil}, verdict: verdictUnknown, want: "node n2 does not answer, and what it saw is not known: agent of node n2: no answer within 1m0s"},
		"no node answers":            {answers: map[string]*admin.Readiness{"n2": nil}, verdict: verdictUnknown, want: "node n2 does not answer"},
		"silence and plaintext":      {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week, fromLegacy), "n2": nil}, verdict: verdictNotReady},
		"more than is remembered":    {answers: map[string]*admin.Readiness{"n1": dropped}, verdict: verdictUnknown, want: "plaintext peers are missing until "},
		"a pod waits for enrolment":  {answers: map[string]*admin.Readiness{"n1": waiting}, verdict: verdictUnknown, want: "not enrolled: pod shop/till-1 on node n1: its namespace was not found"},
		"a pod opted out":            {answers: map[string]*admin.Readiness{"n1": optedOut}, verdict: verdictReady, want: "1 pod outside of the mesh: no policy applies to them"},
		"STRICT already":             {answers: map[string]*admin.Readiness{"n1": withPolicies(watchedFor("n1", time.Minute, fromLegacy), strictPolicy)}, verdict: verdictReady, want: "is STRICT already"},
		"a pod ran unwatched":        {answers: map[string]*admin.Readiness{"n1": blind}, verdict: verdictUnknown, want: "a pod of it ran unwatched until "},
		"unwatched before that":      {answers: map[string]*admin.Readiness{"n1": blind}, args: []string{"--window", "30m"}, verdict: verdictReady},
		"pods elsewhere":             {answers: map[string]*admin.Readiness{"n1": spread, "n2": watchedFor("n2", week)}, verdict: verdictUnknown, want: "its pods on node n3 are, or were, not watched by those who answered"},
		"refused when it was STRICT": {answers: map[string]*admin.Readiness{"n1": watchedFor("n1", week, refused)}, verdict: verdictNotReady, want: "the port was STRICT then"},
		"a node was started anew":    {answers: map[string]*admin.Readiness{"n1": knowing, "n2": anew}, verdict: verdictUnknown, want: "node n2 was started anew, and what it saw before is not known"},
		"a node was not asked":       {answers: map[string]*admin.Readiness{"n1": alone}, verdict: verdictUnknown, want: "node n4 does not answer, and what it saw is not known: it has enrolled pods, and was not asked"},
		"an agent that is older":     {answers: map[string]*admin.Readiness{"n1": old}, verdict: verdictUnknown, want: "its agent is older than this command"},
		"policies of single pods":    {answers: map[string]*admin.Readiness{"n1": withPolicies(watchedFor("n1", week, fromFront), perPod)}, verdict: verdictUnknown, want: "PeerAuthentication shop/one (statefulset.kubernetes.io/pod-name) selects by labels that end with a pod"},
		"of other single pods":       {answers: map[string]*admin.Readiness{"n1": withPolicies(watchedFor("n1", week, fromFront), otherPod)}, verdict: verdictReady},
		"no workload":                {answers: map[string]*admin.Readiness{"n1": {Form: admin.ReadinessForm, Node: "n1", KnownNames: []string{"shop"}}}, verdict: verdictUnknown, want: "no workload is enrolled there"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := &seeingCluster{sockets: map[string]string{}}
			for node, r := range tt.answers {
				c.sockets[node] = ""
				if r != nil {
					c.sockets[node] = serveNode(t, &seeingNode{node: node, readiness: r}, version)
				}
			}
			out, _, err := runSeeing(t.Context(), c, append([]string{"readiness", "shop"}, tt.args...)...)
			if got := codeOf(err); (got == 0) != (tt.verdict == verdictReady) || got > 1 {
				t.Errorf("code %d, %v", got, err)
			}
			if !strings.Contains(out, "\n"+string(tt.verdict)+": ") || !strings.Contains(out, tt.want) {
				t.Errorf("want %s and %q:\n%s", tt.verdict, tt.want, out)
			}
		})
	}
}

func TestANodesClockMayBeOff(t *testing.T) {
	for name, off := range map[string]time.Duration{"behind": -24 * time.Hour, "ahead": 3 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			asked := time.Now()
			peer := fromLegacy
			peer.First, peer.Last = asked.Add(off-time.Hour), asked.Add(off-time.Hour)
			a := watchedFor("n1", week, peer)
			a.Time = asked.Add(off)
			a.Workloads[0].Since = asked.Add(off - week)
			r, err := newJudge([]*admin.Readiness{a}, nil, 24*time.Hour, asked).report()
			if err != nil {
				t.Fatal(err)
			}
			got := asked.Sub(r.Workloads[0].Ports[0].Peers[0].Last)
			if (got-time.Hour).Abs() > 10*time.Second || asked.Sub(r.Workloads[0].Since)-week > 10*time.Second || len(r.Notes) != 1 {
				t.Errorf("last %s ago, notes %q", got, r.Notes)
			}
		})
	}
	asked := time.Now().Add(-time.Minute) // another node took that long
	a := watchedFor("n1", week, fromLegacy)
	a.Time = asked.Add(10 * time.Second)
	if j := newJudge([]*admin.Readiness{a}, nil, 24*time.Hour, asked); len(j.notes) != 0 {
		t.Errorf("notes %q", j.notes)
	}
}

func TestAProposedPolicyIsReplayed(t *testing.T) {
	const head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: "
	strict := head + "all}\nspec: {mtls: {mode: STRICT}}\n"
	inForce := admin.Policy{Namespace: "shop", Name: "mine", Created: time.Unix(1, 0), Mode: "PERMISSIVE", Selector: map[string]string{"app": "cart"}}
	tests := map[string]struct {
		policy   string
		policies []admin.Policy
		verdict  readinessVerdict
		proposed string
		want     string
		breaks   int
	}{
		"STRICT for the namespace":         {strict, nil, verdictNotReady, "STRICT", "1 plaintext peer", 1},
		"an older one for the workload":    {strict, []admin.Policy{inForce}, verdictReady, "PERMISSIVE", "stays open to plaintext", 0},
		"in place of the one for the pods": {head + "mine}\nspec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}}\n", []admin.Policy{inForce}, verdictNotReady, "STRICT", "1 plaintext peer", 1},
		"younger than the one for the pods": {head + "other}\nspec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}}\n", []admin.Policy{inForce},
			verdictReady, "PERMISSIVE", "stays open", 0},
		"but not that port": {head + "p}\nspec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}\n", nil,
			verdictReady, "PERMISSIVE", "stays open", 0},
		"of the whole mesh":   {strings.Replace(strict, "shop", "istio-system", 1), nil, verdictNotReady, "STRICT", "1 plaintext peer", 1},
		"DISABLE":             {head + "all}\nspec: {mtls: {mode: DISABLE}}\n", nil, verdictReady, "DISABLE", "nothing is refused, but 3 connections would lose mTLS", 0},
		"of another one":      {strings.Replace(strict, "shop", "bank", 1), nil, verdictReady, "PERMISSIVE", "stays open", 0},
		"STRICT was in force": {strict, []admin.Policy{{Namespace: "istio-system", Name: "mesh", Mode: "STRICT"}}, verdictReady, "STRICT", "is STRICT already", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "policy.yaml")
			if err := os.WriteFile(file, []byte(tt.policy), 0o600); err != nil {
				t.Fatal(err)
			}
			socket := serveNode(t, &seeingNode{readiness: withPolicies(watchedFor("n1", week, fromFront, fromLegacy), tt.policies...)}, version)
			args := []string{"readiness", "shop", "--local", "--admin-socket", socket, "--policy", file, "-o"}
			out, _, err := runSeeing(t.Context(), nil, append(args, "json")...)
			var r readinessReport
			if jsonErr := json.Unmarshal([]byte(out), &struct {
				Verdict   *readinessVerdict
				Workloads any
			}{&r.Verdict, nil}); jsonErr != nil {
				t.Fatalf("%v: %s", jsonErr, out)
			}
			if r.Verdict != tt.verdict || (codeOf(err) == 0) != (tt.verdict == verdictReady) || !strings.Contains(out, `"why": "`+tt.want) ||
				!strings.Contains(out, `"mode": "`+tt.proposed+`"`) || strings.Count(out, `"old/legacy-1"`) != 1+tt.breaks {
				t.Errorf("code %d, want %s:\n%s", codeOf(err), tt.verdict, out)
			}
			out, _, _ = runSeeing(t.Context(), nil, append(args, "wide")...)
			for _, want := range []string{"PROPOSED", "1 proposed policy would refuse", "WATCHED SINCE"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in:\n%s", want, out)
				}
			}
		})
	}
}

func TestReadinessMergesNodes(t *testing.T) {
	c := &seeingCluster{sockets: map[string]string{
		"n1": serveNode(t, &seeingNode{readiness: watchedFor("n1", week, fromLegacy)}, version),
		"n2": serveNode(t, &seeingNode{readiness: watchedFor("n2", time.Hour, fromLegacy, fromOutside)}, "v0"),
	}}
	out, notes, err := runSeeing(t.Context(), c, "readiness", "--all", "-o", "yaml")
	for _, want := range []string{"verdict: NOT READY", "count: 6", "probesExcluded: 14", "- shop/cart-n1\n  - shop/cart-n2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if codeOf(err) != 1 || !strings.Contains(notes, "the agent is Culvert v0") {
		t.Errorf("code %d, notes %s", codeOf(err), notes)
	}
	if want := "readiness --local -o answer --window 24h0m0s --all"; !strings.Contains(strings.Join(c.asked, "\n"), want) {
		t.Errorf("asked %q, want %q", c.asked, want)
	}
}

func TestManyPeersKeepTheTableReadable(t *testing.T) {
	r := watchedFor("n1", week)
	for i := range 300 {
		p := fromOutside
		p.Address = netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
		r.Workloads[0].Ports[0].Peers = append(r.Workloads[0].Ports[0].Peers, p)
	}
	socket := serveNode(t, &seeingNode{readiness: r}, version)
	out, _, _ := runSeeing(t.Context(), nil, "readiness", "shop", "--local", "--admin-socket", socket)
	if n := strings.Count(out, "\n"); n > 30 || !strings.Contains(out, "and 290 more (-o wide)") {
		t.Errorf("%d lines:\n%s", n, out)
	}
	out, _, _ = runSeeing(t.Context(), nil, "readiness", "shop", "--local", "--admin-socket", socket, "-o", "wide")
	if n := strings.Count(out, "\n"); n < 300 {
		t.Errorf("wide: %d lines", n)
	}
}

func TestReadinessBadInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	here := serveNode(t, &seeingNode{readiness: watchedFor("n1", week)}, version)
	failing := serveNode(t, &seeingNode{err: errors.New("agent has not read the cluster's state yet")}, version)
	broken := write("broken.yaml", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec: {mtls: {mode: LAX}}\n")
	other := write("other.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n")
	local := func(socket string, args ...string) []string {
		return append([]string{"--local", "--admin-socket", socket}, args...)
	}
	tests := map[string]struct {
		cluster *seeingCluster
		args    []string
		code    int
		want    string
	}{
		"nothing asked":          {nil, local(here), 2, "say which namespace, or --all"},
		"both asked":             {nil, local(here, "shop", "--all"), 2, "say which namespace, or --all"},
		"a pod":                  {nil, local(here, "shop/cart"), 2, "is not a namespace"},
		"unknown namespace":      {nil, local(here, "shopp"), 1, "namespace shopp does not exist; there are pods in shop"},
		"no window":              {nil, local(here, "shop", "--window", "0s"), 2, "--window"},
		"too much":               {nil, local(here, "shop", "--window", "200h"), 2, "up to 168h0m0s"},
		"no such file":           {nil, local(here, "shop", "--policy", dir+"/none"), 1, "--policy: 1 of its documents cannot be used"},
		"a policy that is wrong": {nil, local(here, "shop", "--policy", broken), 1, "LAX"},
		"no policy in the file":  {nil, local(here, "shop", "--policy", other), 1, "no PeerAuthentication in it"},
		"output":                 {nil, local(here, "shop", "-o", "pem"), 2, "must be one of table, wide"},
		"agent not ready":        {nil, local(failing, "shop"), 1, "has not read the cluster's state yet"},
		"an older agent":         {&seeingCluster{old: true, sockets: map[string]string{"n1": ""}}, []string{"shop"}, 1, "older version"},
		"no cluster, no agent":   {nil, []string{"shop", "--admin-socket", dir + "/none.sock"}, 1, "no kubeconfig is set"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, notes, err := runSeeing(t.Context(), tt.cluster, append([]string{"readiness"}, tt.args...)...)
			text := out + notes
			if err != nil {
				text += err.Error()
			}
			if codeOf(err) != tt.code || !strings.Contains(text, tt.want) {
				t.Errorf("code %d, %q; want %d, %q", codeOf(err), text, tt.code, tt.want)
			}
		})
	}
	_, notes, err := runSeeing(t.Context(), nil, "readiness", "shop", "--admin-socket", here)
	if err != nil || !strings.Contains(notes, "this node's agent alone is asked: API server: no kubeconfig is set") {
		t.Errorf("without a cluster: %v, %s", err, notes)
	}
}
