package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func newCanCommand() *cobra.Command { return canCommand(newAsking()) }

func canCommand(a *asking) *cobra.Command {
	var (
		out output
		try bool
	)
	c := &cobra.Command{
		Use:   "can FROM TO[:PORT]",
		Short: "Tell whether a connection would be mTLS, plaintext or refused, and why",
		Long: `Tell whether a connection would be mTLS, plaintext or refused, and why: what decides for the client (DestinationRules,
and what is known of the destination, by the same code that answers tunnels) and for the server (the mode of its port).

FROM is NAMESPACE/POD, or the word outside for a client that is in no mesh. TO is NAMESPACE/POD or, for a Service,
svc/NAMESPACE/NAME or svc NAMESPACE/NAME. PORT is a number or a name; it may be left out where there is only one.

--try also makes the connection, from the network namespace of FROM, as any application there would, and tells whether
it went as foretold: also for the reason, and in the way, as far as this node has seen. It sends nothing, and closes the
connection after two seconds, or once the client's tunnel has told what became of it, which may take half a minute. From
outside it is made by the node itself that is asked. A trial in plaintext is seen as any other is: readiness will count it.

The agent of FROM's node is asked; for outside, TO's. The exit code is 1 if the connection would be refused, by any
endpoint that it may lead to, if it was refused when it was tried, and if it went otherwise than foretold.`,
		Example: `  culvert can shop/cart-7f9c shop/till-5d8b:8080
  culvert can shop/cart-7f9c svc shop/till:80 --try
  culvert can outside svc/shop/till:http -o json`,
		Args:              cobra.RangeArgs(2, 4),
		ValidArgsFunction: a.completePods(2),
		RunE: func(c *cobra.Command, args []string) error {
			q, err := a.question(args)
			if err := errors.Join(err, a.check(), out.check()); err != nil {
				return err
			}
			q.Try = try
			return finished(c, a.can(c, &out, q))
		},
	}
	a.register(c)
	a.registerNamespace(c)
	out.register(c)
	c.Flags().BoolVar(&try, "try", false, "make the connection for real, too")
	return c
}

// question reads FROM and TO, each perhaps after a word that says what it is.
func (a *asking) question(args []string) (admin.Question, error) {
	from, rest, fromErr := a.object(args)
	to, rest, toErr := a.object(rest)
	if err := errors.Join(fromErr, toErr); err != nil {
		return admin.Question{}, err
	}
	switch {
	case len(rest) > 0:
		return admin.Question{}, usage("%q: nothing is expected after FROM and TO", rest[0])
	case from.service:
		return admin.Question{}, usage("svc %s: a Service opens no connections; FROM is a pod, or outside", from.name)
	case from.port != "":
		return admin.Question{}, usage("%s:%s: FROM has no port", from.name, from.port)
	case to.name == admin.Outside:
		return admin.Question{}, usage("TO is a pod or a Service of the cluster")
	}
	return admin.Question{From: from.name, To: to.name, Service: to.service, Port: to.port}, nil
}

// object is one side of a question.
type object struct {
	name, port string
	service    bool
}

// object takes one off the arguments: [pod|svc] [NAMESPACE/]NAME[:PORT], with a slash or a space after the kind.
func (a *asking) object(args []string) (object, []string, error) {
	if len(args) == 0 {
		return object{}, nil, usage("FROM and TO are needed; see culvert can --help")
	}
	word := args[0]
	kind, name, _ := strings.Cut(word, "/")
	service, isKind := kinds()[kind]
	rest := args[1:]
	switch {
	case isKind && name == "" && len(rest) > 0:
		name, rest = rest[0], rest[1:]
	case !isKind:
		name = word
	}
	name, port, hasPort := strings.Cut(name, ":")
	if hasPort && port == "" {
		return object{}, rest, usage("%q: the port is missing", word)
	}
	o := object{name: name, port: port, service: service}
	if name == admin.Outside && !isKind {
		return o, rest, nil
	}
	var err error
	o.name, err = a.named(name)
	return o, rest, err
}

// kinds are the words that say what a name is of; true: a Service.
func kinds() map[string]bool {
	return map[string]bool{"pod": false, "pods": false, "po": false, "svc": true, "service": true, "services": true}
}

func (a *asking) can(c *cobra.Command, out *output, q admin.Question) error {
	pod := q.From
	if pod == admin.Outside {
		pod = ""
		if !q.Service {
			pod = q.To
		}
	}
	v, err := ask(c.Context(), a, pod, canArguments(q), func(client *admin.Client) (*admin.Verdict, error) { return client.Can(c.Context(), q) })
	if err != nil {
		return err
	}
	noteSkew(c.ErrOrStderr(), v.Version)
	if err := out.write(c.OutOrStdout(), v, func(s *screen) { showVerdict(s, v) }); err != nil {
		return err
	}
	if v.OK() {
		return nil
	}
	return &exitError{code: exitBadNews}
}

// canArguments are those with which another agent's culvert is asked the same.
func canArguments(q admin.Question) []string {
	args := []string{"can", "--local", "-o", "json"}
	if q.Try {
		args = append(args, "--try")
	}
	to := q.To
	if q.Port != "" {
		to += ":" + q.Port
	}
	kind := "pod"
	if q.Service {
		kind = "svc"
	}
	return append(args, "--", q.From, kind, to)
}

func showVerdict(s *screen, v *admin.Verdict) {
	words := map[admin.Outcome]cell{
		admin.OutcomeMTLS: {"mTLS", green}, admin.OutcomePlaintext: {"plaintext", yellow},
		admin.OutcomeRefused: {"refused", red}, admin.OutcomeMixed: {"it depends", yellow},
	}
	kind := ""
	if v.Service {
		kind = "Service "
	}
	s.line("%s -> %s%s (%s)", plain(v.From), kind, plain(v.To), plain(v.Address))
	s.line("%s: %s\n", s.paint(words[v.Outcome].colour, cmp.Or(words[v.Outcome].text, plain(string(v.Outcome)))), plain(v.Reason))
	enrolled := "not in the mesh: "
	if v.FromEnrolled {
		enrolled = "in the mesh: "
	}
	s.facts([2]string{"client", enrolled + v.FromReason}, [2]string{"identity", v.FromIdentity}, [2]string{"as told by", v.Node})
	if len(v.Endpoints) > 0 {
		rows := [][]cell{}
		for i := range v.Endpoints {
			e := &v.Endpoints[i]
			result := words[e.Outcome]
			if e.SameNode {
				result.text += " (same node)"
			}
			row := []cell{{text: e.Address}, {text: e.Pod}, result, {text: e.Client}, {text: e.Server}}
			if s.wide {
				row = append(row, cell{text: e.Node}, cell{text: e.Identity})
			}
			rows = append(rows, row)
		}
		header := []string{"ENDPOINT", "POD", "RESULT", "CLIENT", "SERVER"}
		if s.wide {
			header = append(header, "NODE", "MUST PROVE")
		}
		s.line("")
		s.table(header, rows)
	}
	if v.Tried != nil {
		s.line("\n%s", trialText(s, v.Tried, v.Outcome))
	}
	s.list("warnings:", yellow, v.Warnings)
}

func trialText(s *screen, t *admin.Trial, foretold admin.Outcome) string {
	what := map[admin.TrialOutcome]string{
		admin.TrialConnected: fmt.Sprintf("connected in %s from %s, and open for %s", precise(t.Connect), t.Local, precise(t.Watched)),
		admin.TrialClosed:    fmt.Sprintf("connected in %s from %s, and closed by the other side in order", precise(t.Connect), t.Local),
		admin.TrialReset:     fmt.Sprintf("connected in %s from %s, and reset after %s", precise(t.Connect), t.Local, precise(t.Watched)),
		admin.TrialRefused:   "refused", admin.TrialTimeout: fmt.Sprintf("no answer within %s", precise(t.Connect)), admin.TrialFailed: "failed",
	}[t.Outcome]
	text := "tried: " + plain(cmp.Or(what, string(t.Outcome)))
	if t.Error != "" {
		text += " (" + plain(t.Error) + ")"
	}
	if t.Carried != "" {
		text += ", seen as " + plain(t.Carried)
	}
	switch {
	case t.AsForetold && t.Works() && foretold == admin.OutcomeRefused:
		return text + ": " + s.paint(green, "as foretold") + ", it is the tunnel that answers, and waits for what it would refuse"
	case t.AsForetold:
		return text + ": " + s.paint(green, "as foretold")
	}
	text += ": " + s.paint(red, "NOT AS FORETOLD") + "\n  " + plain(t.Difference)
	if !t.Works() {
		text += "\n  (foretold is what the mesh does: the application may not listen, or a NetworkPolicy forbid it)"
	}
	return text
}

// precise is a short duration with as many digits as people read.
func precise(d time.Duration) string {
	if d < time.Second {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
