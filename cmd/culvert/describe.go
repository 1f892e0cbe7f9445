package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func newDescribeCommand() *cobra.Command { return describeCommand(newAsking) }

// describeCommand makes an asking for each of its commands: they have flags of their own.
func describeCommand(asks func() *asking) *cobra.Command {
	c := &cobra.Command{
		Use:   "describe",
		Short: "Tell what the mesh makes of a pod or a Service",
		Example: `  culvert describe pod shop/cart-7f9c
  culvert describe service shop/cart`,
	}
	c.AddCommand(describePodCommand(asks()), describeServiceCommand(asks()))
	return c
}

func describePodCommand(a *asking) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:     "pod [NAMESPACE/]NAME",
		Aliases: []string{"pods", "po"},
		Short:   "Tell what the mesh makes of a pod",
		Long: `Tell what the mesh makes of a pod: whether it is enrolled, or why not; its identity and certificate; for each port the
mode, the policy that decides it and those that are without effect; the DestinationRules that its callers go by; who
connected lately; and what of all this its owner may not expect.

The agent of the pod's node is asked: through its socket on that node, elsewhere through the API server as kubectl exec
does it. A name without a namespace is enough where there is only one of it.`,
		Example: `  culvert describe pod shop/cart-7f9c
  culvert describe pod -n shop cart-7f9c -o yaml`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePods(1),
		RunE: func(c *cobra.Command, args []string) error {
			name, err := a.named(args[0])
			if err := errors.Join(err, a.check(), out.check()); err != nil {
				return err
			}
			d, err := ask(c.Context(), a, name, []string{"describe", "pod", "--local", "-o", "json", "--", name},
				func(client *admin.Client) (*admin.PodDescription, error) {
					return client.DescribePod(c.Context(), name)
				})
			if err != nil {
				return finished(c, err)
			}
			noteSkew(c.ErrOrStderr(), d.Version)
			return out.write(c.OutOrStdout(), d, func(s *screen) { showPod(s, d) })
		},
	}
	a.register(c)
	a.registerNamespace(c)
	out.register(c)
	return c
}

func describeServiceCommand(a *asking) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:     "service [NAMESPACE/]NAME",
		Aliases: []string{"services", "svc"},
		Short:   "Tell what lies behind a Service",
		Long: `Tell what lies behind a Service: its ready endpoints, which of them are in the mesh, the mode of each one's port, the
DestinationRules that callers go by, and where these do not fit each other. Any agent can tell; without --node it is this
node's, or else one that is reached through the API server as kubectl exec does it.`,
		Example: `  culvert describe service shop/cart
  culvert describe svc -n shop cart -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			name, err := a.named(args[0])
			if err := errors.Join(err, a.check(), out.check()); err != nil {
				return err
			}
			d, err := ask(c.Context(), a, "", []string{"describe", "service", "--local", "-o", "json", "--", name},
				func(client *admin.Client) (*admin.ServiceDescription, error) {
					return client.DescribeService(c.Context(), name)
				})
			if err != nil {
				return finished(c, err)
			}
			noteSkew(c.ErrOrStderr(), d.Version)
			return out.write(c.OutOrStdout(), d, func(s *screen) { showService(s, d) })
		},
	}
	a.register(c)
	a.registerNamespace(c)
	out.register(c)
	return c
}

func showPod(s *screen, d *admin.PodDescription) {
	state := "not enrolled: "
	if d.Enrolled {
		state = "enrolled: "
	}
	s.facts(
		[2]string{"pod", d.Pod}, [2]string{"node", d.Node}, [2]string{"service account", d.ServiceAccount},
		[2]string{"addresses", strings.Join(d.Addresses, ", ")}, [2]string{"mesh", state + d.Reason},
		[2]string{"identity", d.Identity}, [2]string{"certificate", certificateText(d)},
	)
	s.line("")
	rows := [][]cell{}
	for _, p := range append(slices.Clone(d.Ports), d.Default) {
		port, note := fmt.Sprint(p.Port), ""
		if p.Port == 0 {
			port = "all others"
		}
		if p.InForce != "" {
			note = "in force: " + p.InForce
		}
		rows = append(rows, []cell{{text: port}, {text: strings.Join(p.Names, ",")}, modeCell(p.Mode, d.Enrolled), {text: p.Policy}, {text: note}})
	}
	s.table([]string{"PORT", "NAME", "MODE", "DECIDED BY", "NOTE"}, rows)
	showLevels(s, d)
	showPodServices(s, d.Services)
	showLately(s, d)
	s.list("warnings:", yellow, d.Warnings)
}

// modeCell is the mode; in a pod that is not enrolled nobody enforces it.
func modeCell(mode string, enforced bool) cell {
	if !enforced {
		return cell{text: mode + " (not enforced)"}
	}
	return cell{mode, map[string]colour{"STRICT": green, "DISABLE": red, "PERMISSIVE": yellow}[mode]}
}

func certificateText(d *admin.PodDescription) string {
	c := d.Certificate
	if c == nil || len(c.Chain) == 0 {
		return ""
	}
	return fmt.Sprintf("%s, %s left, next renewal %s, from %s", stateOf(c, d.Time), lifeLeft(&c.Chain[0], d.Time), renewal(c, d.Time), d.CertSource)
}

func showLevels(s *screen, d *admin.PodDescription) {
	if len(d.Levels) > 0 {
		rows := [][]cell{}
		for _, l := range d.Levels {
			losers := strings.Join(l.Losers, ", ")
			if more := l.LosersCount - len(l.Losers); more > 0 {
				losers += fmt.Sprintf(" and %d more", more)
			}
			rows = append(rows, cells(l.Level, l.Winner, l.Mode, losers))
		}
		s.line("")
		s.table([]string{"LEVEL", "POLICY", "ITS MODE", "WITHOUT EFFECT (YOUNGER)"}, rows)
	}
	if len(d.Ignored) > 0 {
		s.line("ignored, a selector has no meaning in the root namespace: %s", plain(strings.Join(d.Ignored, ", ")))
	}
}

func showPodServices(s *screen, all []admin.PodService) {
	if len(all) == 0 {
		return
	}
	rows := [][]cell{}
	for _, service := range all {
		for _, p := range service.Ports {
			at := fmt.Sprintf("%s:%d", service.Service, p.Port)
			rows = append(rows, ruleRows(at, fmt.Sprint(p.Target), p.Rules)...)
		}
	}
	s.line("")
	s.table([]string{"SERVICE", "TO PORT", "CALLERS", "DESTINATIONRULE", "ASKS FOR"}, rows)
}

// ruleRows are one row for each rule, or one that says that there is none.
func ruleRows(at, target string, rules []admin.CallerRule) [][]cell {
	if len(rules) == 0 {
		return [][]cell{cells(at, target, "all", "", "")}
	}
	rows := [][]cell{}
	for _, r := range rules {
		rows = append(rows, cells(at, target, r.Callers, r.Rule, r.Action))
		at, target = " ", " "
	}
	return rows
}

func showLately(s *screen, d *admin.PodDescription) {
	if len(d.Lately) == 0 {
		return
	}
	rows := [][]cell{}
	for _, p := range d.Lately {
		rows = append(rows, []cell{{text: p.Peer}, {text: fmt.Sprint(p.Port)}, {p.Carried, carriedColour(p.Carried)},
			{text: fmt.Sprint(p.Connections)}, {text: ago(p.Last, d.Time)}})
	}
	s.line("")
	s.table([]string{"WHO CONNECTED", "PORT", "HOW", "CONNECTIONS", "LAST"}, rows)
}

func carriedColour(carried string) colour {
	switch carried {
	case "mtls", "same-node":
		return green
	case "plaintext":
		return yellow
	}
	return red
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return short(now.Sub(t)) + " ago"
}

func showService(s *screen, d *admin.ServiceDescription) {
	kind := strings.Join(d.Addresses, ", ")
	if d.Headless {
		kind = "none (headless)"
	}
	s.facts([2]string{"Service", d.Service}, [2]string{"addresses", kind}, [2]string{"external", strings.Join(d.External, ", ")}, [2]string{"as seen by", d.Node})
	for i := range d.Ports {
		showServicePort(s, &d.Ports[i])
	}
	s.list("warnings:", yellow, d.Warnings)
}

func showServicePort(s *screen, p *admin.ServicePortDescription) {
	name := ""
	if p.Name != "" {
		name = " (" + plain(p.Name) + ")"
	}
	s.line("\nport %d%s to %s: %s, %d in the mesh", p.Port, name, plain(p.Target), plural(p.EndpointsCount, "endpoint"), p.InMesh)
	for _, r := range p.Rules {
		s.line("  callers: %s: DestinationRule %s asks for %s", plain(r.Callers), plain(r.Rule), plain(r.Action))
	}
	rows := [][]cell{}
	for _, e := range p.Endpoints {
		mesh := "no"
		if e.InMesh {
			mesh = "yes"
		}
		row := []cell{{text: "  " + e.Address}, {text: e.Pod}, {text: e.Node}, {text: mesh}, modeCell(e.Mode, e.InMesh), {text: e.Policy}}
		if e.Pod == "" {
			row[4] = cell{}
		}
		rows = append(rows, row)
	}
	if len(rows) > 0 {
		s.table([]string{"  ENDPOINT", "POD", "NODE", "IN MESH", "MODE", "DECIDED BY"}, rows)
	}
	if more := p.EndpointsCount - len(p.Endpoints); more > 0 {
		s.line("  and %d more", more)
	}
}
