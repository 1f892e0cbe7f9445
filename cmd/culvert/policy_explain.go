package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

func newExplainCommand(read clusterReader) *cobra.Command {
	f := policyFlags{readCluster: read}
	var of asking
	c := &cobra.Command{
		Use:   "explain [-f FILE|FOLDER ...] [[NAMESPACE/]POD[:PORT]]",
		Short: "Say which mode holds for each pod and port, and which policy decides it",
		Long: `Say which mode holds for each pod and port, and which policy decides it.

Without -f the Namespaces, Pods, Services, PeerAuthentications and DestinationRules of the cluster are read, which takes
permission to list them. Manifests may hold anything: Namespaces, Pods, PeerAuthentications and so on are read, other kinds are counted.
The exit code is 1 if a document could not be used; what could be used is explained all the same.`,
		Example: `  culvert policy explain -n shop
  culvert policy explain shop/cart-7f9c:8080
  culvert policy explain -f manifests/
  kubectl get ns,pods,peerauthentications -A -o yaml | culvert policy explain -f - default/productpage:9080`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			pod, port, hasPort := strings.Cut(strings.Join(args, ""), ":")
			if len(args) > 0 {
				var err error
				if pod, err = of.namedPod(pod); err != nil {
					return err
				}
			}
			return explain(c, &f, of.namespace, pod, port, hasPort)
		},
	}
	f.add(c)
	c.Flags().StringVarP(&of.namespace, "namespace", "n", "", namespaceUsage)
	return c
}

// maxLosers keeps the output readable, and small where thousands of policies select the same pods.
const maxLosers = 20

// explained is one pod of the output. Fields are only ever added to it.
type explained struct {
	Namespace      string                 `json:"namespace"`
	Pod            string                 `json:"pod"`
	Mode           policy.Mode            `json:"mode"`
	Ports          map[uint16]policy.Mode `json:"ports"`
	Policy         string                 `json:"policy"`
	PortPolicies   map[uint16]string      `json:"portPolicies"`
	Enrolled       bool                   `json:"enrolled"`
	EnrolledReason string                 `json:"enrolledReason"`
	Port           *explainedPort         `json:"port,omitempty"` // the one that was asked for
	Overridden     []string               `json:"overridden"`     // matching policies that a stronger level overrides
	Silent         []string               `json:"silent"`         // matching policies that leave the mode UNSET
	Losers         []string               `json:"losers"`         // matching policies without effect: an older one stands on their level; the first of each level
	LosersCount    int                    `json:"losersCount"`    // all of them
	Ignored        []string               `json:"ignored"`        // of the root namespace, with a selector, which has no meaning there
	Unreadable     bool                   `json:"unreadable"`     // a policy that may apply could not be read: an agent opens nothing that was closed
}

type explainedPort struct {
	Number uint16      `json:"number"`
	Mode   policy.Mode `json:"mode"`
	Policy string      `json:"policy"`
}

// explain is about one pod, or about all of a namespace, or about all.
func explain(c *cobra.Command, f *policyFlags, namespace, pod, port string, hasPort bool) error {
	r, err := f.read(c)
	if err != nil {
		return err
	}
	snapshot := source.NewSnapshot("", r.Contents)
	pods := make([]*source.Pod, 0, len(r.Pods))
	for i := range r.Pods {
		if namespace == "" || r.Pods[i].Namespace == namespace {
			pods = append(pods, &r.Pods[i])
		}
	}
	if pod != "" {
		if pods, err = onlyPod(pods, pod); err != nil {
			return err
		}
	}
	slices.SortFunc(pods, func(a, b *source.Pod) int { return compareNames(a.Namespace, a.Name, b.Namespace, b.Name) })
	set := policy.NewSet(f.root, r.Policies)
	out := make([]explained, 0, len(pods))
	for _, p := range pods {
		e := explainPod(set, p, enroll.Decide(snapshot.Namespace(p.Namespace), p, f.enroll()))
		e.Unreadable = snapshot.PolicyUnreadable(p.Namespace, f.root)
		if hasPort {
			if err := e.ask(set, p, port); err != nil {
				return err
			}
		}
		out = append(out, e)
	}
	if err := f.output.write(c.OutOrStdout(), out, func(s *screen) { showExplained(s, out, pod != "") }); err != nil {
		return err
	}
	return failed(r)
}

func onlyPod(pods []*source.Pod, name string) ([]*source.Pod, error) {
	for _, p := range pods {
		if p.Ref() == name {
			return []*source.Pod{p}, nil
		}
	}
	return nil, fmt.Errorf("pod %s is not among what was read", name)
}

func workloadOf(p *source.Pod) policy.Workload {
	return policy.Workload{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}
}

func explainPod(set *policy.Set, p *source.Pod, d enroll.Decision) explained {
	x := set.Explain(workloadOf(p))
	e := explained{
		Namespace: p.Namespace, Pod: p.Name,
		Mode: x.Mode, Policy: x.Policy.String(),
		Ports: make(map[uint16]policy.Mode, len(x.Ports)), PortPolicies: make(map[uint16]string, len(x.Ports)),
		Enrolled: d.Enrolled, EnrolledReason: d.Reason,
		Overridden: []string{}, Silent: []string{}, Losers: []string{}, Ignored: []string{},
	}
	deciding := map[policy.Ref]bool{x.Policy: true}
	for port, decision := range x.Ports {
		e.Ports[port] = decision.Mode
		e.PortPolicies[port] = decision.Policy.String()
		deciding[decision.Policy] = true
	}
	for _, level := range x.Levels {
		switch {
		case deciding[level.Winner]:
		case level.Mode == policy.Unset:
			e.Silent = append(e.Silent, level.Winner.String())
		default:
			e.Overridden = append(e.Overridden, level.Winner.String())
		}
		e.LosersCount += len(level.Losers)
		for _, loser := range level.Losers[:min(len(level.Losers), maxLosers)] {
			e.Losers = append(e.Losers, loser.String())
		}
	}
	for _, ref := range x.Ignored {
		e.Ignored = append(e.Ignored, ref.String())
	}
	return e
}

// ask adds the answer for one port, given by number or by the name of a container port.
func (e *explained) ask(set *policy.Set, p *source.Pod, port string) error {
	number := p.Ports[port]
	if number == 0 {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("port %q of pod %s: neither a number from 1 to 65535 nor the name of a container port", port, p.Ref())
		}
		number = uint16(n)
	}
	d := set.Effective(workloadOf(p)).ForPort(number)
	e.Port = &explainedPort{number, d.Mode, d.Policy.String()}
	return nil
}

func showExplained(s *screen, all []explained, details bool) {
	rows := make([][]cell, 0, len(all))
	for i := range all {
		e := &all[i]
		by := e.Policy
		if e.Unreadable {
			by += " (a policy could not be read: an agent loosens nothing, and starts new pods STRICT)"
		}
		row := cells(e.Namespace, e.Pod, yesNo(e.Enrolled), e.Mode.String(), e.portList(), by)
		if s.wide {
			row = append(row, cells(e.EnrolledReason, strings.Join(e.Overridden, ", "))...)
		}
		rows = append(rows, row)
	}
	header := []string{"NAMESPACE", "POD", "ENROLLED", "MODE", "PORTS", "DECIDED BY"}
	if s.wide {
		header = append(header, "WHY ENROLLED", "OVERRIDDEN")
	}
	s.table(header, rows)
	for i := range all {
		if details {
			all[i].details(s)
		}
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (e *explained) portList() string {
	if len(e.Ports) == 0 {
		return "-"
	}
	parts := make([]string, 0, len(e.Ports))
	for _, port := range slices.Sorted(maps.Keys(e.Ports)) {
		parts = append(parts, fmt.Sprintf("%d=%s", port, e.Ports[port]))
	}
	return strings.Join(parts, ",")
}

// details says in sentences what the table has no room for.
func (e *explained) details(s *screen) {
	if e.Port != nil {
		s.line("\nport %d: %s, decided by %s", e.Port.Number, e.Port.Mode, plain(e.Port.Policy))
	}
	losers := e.Losers
	if more := e.LosersCount - len(losers); more > 0 {
		losers = append(slices.Clone(losers), fmt.Sprintf("and %d more", more))
	}
	s.line("\nenrolled: %s (%s)", yesNo(e.Enrolled), plain(e.EnrolledReason))
	for _, list := range []struct {
		title string
		refs  []string
	}{
		{"overridden by a stronger level", e.Overridden},
		{"without a mode of its own (UNSET)", e.Silent},
		{"without effect, an older policy stands on the same level", losers},
		{"ignored, a selector has no meaning in the root namespace", e.Ignored},
	} {
		if len(list.refs) > 0 {
			s.line("%s: %s", list.title, plain(strings.Join(list.refs, ", ")))
		}
	}
}
