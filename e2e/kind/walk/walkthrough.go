package walk

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

const (
	nginx       = "test/nginx"
	legacyApp   = "test/legacy-app"
	productpage = "default/productpage"
	auditor     = "audit/auditor"
	reviews     = "default/reviews"

	// comeTrue is how long after kubectl has returned a policy may take to hold, on a machine that does much else.
	comeTrue = 8 * time.Second
)

// walkthrough is the demo's, each row on one node and across nodes.
func walkthrough() []group {
	var all []group
	for _, step := range demo.Walkthrough() {
		g := group{name: step.Name, setup: func(ctx context.Context, s *suite) error {
			return s.applyPolicies(ctx, step.Policies...)
		}}
		for _, request := range step.Requests {
			for _, where := range []string{sameNode, acrossNodes} {
				g.rows = append(g.rows, requestRow(request, where))
			}
		}
		all = append(all, g)
	}
	return all
}

func requestRow(r demo.RequestSpec, where string) row {
	target := fmt.Sprintf("%s:%d", r.To, r.Port)
	if r.Service {
		target += " (Service)"
	}
	one := row{name: r.From + " -> " + target, where: where, expected: r.Want}
	if r.Want == demo.Succeeds {
		one.expected += ", " + carrier(r, where)
	}
	one.do = func(ctx context.Context, s *suite) (string, error) {
		var got string
		err := until(ctx, comeTrue, func(ctx context.Context) (err error) {
			got, err = s.request(ctx, r, where)
			return err
		})
		return got, err
	}
	return one
}

// carrier is how the tunnel's log has to call it.
func carrier(r demo.RequestSpec, where string) string {
	if r.Carried == demo.ByMTLS && where == sameNode {
		return demo.BySameNode
	}
	return r.Carried
}

// request makes a request over each IP version and compares what is known about it with what is expected.
func (s *suite) request(ctx context.Context, r demo.RequestSpec, where string) (string, error) {
	from, err := s.near(r.From, r.To, where)
	if err != nil {
		return "", err
	}
	to, err := s.pod(r.To)
	if err != nil {
		return "", err
	}
	var urls, markers []string
	for _, version := range s.versions() {
		at := to.at(version, r.Port)
		if r.Service {
			if at, err = s.service(ctx, r.To, version, r.Port); err != nil {
				return "", err
			}
		}
		marker := newMarker()
		urls, markers = append(urls, page(at, marker)), append(markers, marker)
	}
	var record *capture
	if s.NodeAccess {
		if record, err = s.capture(ctx, to.node); err != nil {
			return "", err
		}
	}
	begin := time.Now()
	attempts, err := s.ask(ctx, from, urls...)
	if record != nil {
		record.stop()
	}
	if err != nil {
		return "", err
	}
	var got []string
	var errs []error
	for i, a := range attempts {
		said, problems := s.judge(ctx, r, where, from, to, a, begin, s.versions()[i])
		if record != nil {
			problems = append(problems, judgeCapture(r, a, record, markers[i])...)
		}
		if a.ok && a.answer.Path != "/"+markers[i] {
			problems = append(problems, fmt.Errorf("the answer is to another request: %s", a.answer.Path))
		}
		got = append(got, said)
		if err := errors.Join(problems...); err != nil {
			errs = append(errs, fmt.Errorf("IPv%d: %w", s.versions()[i], err))
		}
	}
	return strings.Join(got, "; "), errors.Join(errs...)
}

// judge compares one attempt with what the client, the server and the tunnels have to say about it.
func (s *suite) judge(ctx context.Context, r demo.RequestSpec, where string, from, to *pod, a attempt, begin time.Time, version int) (string, []error) {
	var problems []error
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	// Refusals at the SYN are logged by the receiving tunnel; what passes as plaintext is not.
	limit := 3 * time.Second
	if r.Carried == demo.ByPlaintext {
		limit = 0
	}
	e := s.witness(ctx, limit, from, to.at(version, r.Port), a, begin)
	got := a.String()
	if a.ok && e.carried != "" {
		got += ", " + e.carried
	} else if a.ok {
		got += ", plaintext"
	}
	switch r.Want {
	case demo.Succeeds:
		if err := a.check(wantOK); err != nil {
			return got, append(problems, err)
		}
		problems = append(problems, judgeSuccess(r, where, from, to, a, e, version)...)
	case demo.Refused:
		if err := a.check(wantRefused); err != nil {
			problems = append(problems, err)
		} else if !e.logged {
			problem("the refusal is not in the tunnel's log")
		}
	case demo.Rejected:
		if err := a.check(wantStopped); err != nil {
			problems = append(problems, err)
		}
	}
	if e.logged && e.decided != "" && r.Decided != "" && r.Want != demo.Rejected && e.decided != r.Decided {
		problem("decided by %q, want %q", e.decided, r.Decided)
	}
	return got, problems
}

func judgeSuccess(r demo.RequestSpec, where string, from, to *pod, a attempt, e evidence, version int) (problems []error) {
	want, carried := carrier(r, where), e.carried
	if carried == "" {
		carried = demo.ByPlaintext
	}
	if carried != want {
		problems = append(problems, fmt.Errorf("carried by %s, want %s", carried, want))
	}
	if want != demo.ByPlaintext && (e.source != from.identity() || e.destination != to.identity()) {
		problems = append(problems, fmt.Errorf("identities %q and %q, want %q and %q", e.source, e.destination, from.identity(), to.identity()))
	}
	if a.answer.Pod != to.name {
		problems = append(problems, fmt.Errorf("pod %s answered, not %s", a.answer.Pod, to.name))
	}
	seen, err := netip.ParseAddrPort(a.answer.Client)
	if err != nil || seen.Addr().Unmap() != from.ip[version] {
		problems = append(problems, fmt.Errorf("the server saw %q, want the client's own address %s", a.answer.Client, from.ip[version]))
	} else if want != demo.ByPlaintext && seen.Port() != a.local.Port() {
		problems = append(problems, fmt.Errorf("the server saw port %d, the client has %d", seen.Port(), a.local.Port()))
	}
	return problems
}

// judgeCapture compares what was seen on the node's interfaces, pods' and its own, with what may be readable there.
func judgeCapture(r demo.RequestSpec, a attempt, record *capture, marker string) (problems []error) {
	visible, want := record.contains(marker), a.ok && r.Carried == demo.ByPlaintext
	switch {
	case record.lost > 0:
		problems = append(problems, fmt.Errorf("the capture lost %d packets", record.lost))
	case visible && !want:
		problems = append(problems, errors.New("the request is readable on the node's interfaces"))
	case !visible && want:
		problems = append(problems, errors.New("the plaintext request was not captured: the capture proves nothing"))
	}
	return problems
}

// service returns an address of the Service that is named like the workload.
func (s *suite) service(ctx context.Context, ref string, version int, port uint16) (netip.AddrPort, error) {
	namespace, name, _ := strings.Cut(ref, "/")
	out, err := s.kubectl(ctx, "get", "service", name, "--namespace="+namespace, "--output=jsonpath={.spec.clusterIPs[*]}")
	if err != nil {
		return netip.AddrPort{}, err
	}
	for word := range strings.FieldsSeq(out) {
		if ip, err := netip.ParseAddr(word); err == nil && ip.Is4() == (version == 4) {
			return netip.AddrPortFrom(ip, port), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("service %s has no address of IPv%d: %s", ref, version, out)
}

// control shows that it is the policy that refuses: without it the same request succeeds.
func control() group {
	ask := func(outcome string, policies ...string) func(context.Context, *suite) (string, error) {
		return func(ctx context.Context, s *suite) (string, error) {
			if err := s.applyPolicies(ctx, policies...); err != nil {
				return "", err
			}
			from, err := s.near(legacyApp, productpage, acrossNodes)
			if err != nil {
				return "", err
			}
			return s.want(ctx, comeTrue, from, outcome, page(s.pods[productpage].at(4, 9080), "control"))
		}
	}
	return group{name: "negative control", rows: []row{
		{name: "STRICT applied: plaintext", where: acrossNodes, expected: "refused", do: ask(wantRefused, "default-strict")},
		{name: "STRICT deleted: plaintext", where: acrossNodes, expected: "ok", do: ask(wantOK)},
	}}
}
