package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/agent/observe"
)

// flowFilter chooses flows. What is empty chooses all.
type flowFilter struct {
	namespace, pod, from, to string
	port                     uint16
	carried                  []string
}

func (f *flowFilter) check() error {
	for _, c := range f.carried {
		if err := oneOf("--carried", c, allCarried()...); err != nil {
			return err
		}
	}
	if f.pod == "" {
		return nil
	}
	if namespace, name, ok := strings.Cut(f.pod, "/"); !ok && f.namespace == "" {
		return usage("--pod %q: say NAMESPACE/POD, or name the namespace with --namespace", f.pod)
	} else if ok && (namespace == "" || strings.Contains(name, "/") || f.namespace != "" && f.namespace != namespace) {
		return usage("--pod %q: must be NAMESPACE/POD, and of no other namespace than --namespace", f.pod)
	}
	if f.from != "" || f.to != "" {
		return usage("--pod is for either side: use --from and --to without it")
	}
	return nil
}

func allCarried() []string {
	return []string{string(observe.MTLS), string(observe.SameNode), string(observe.Plaintext), string(observe.Refused), string(observe.Failed)}
}

func (f *flowFilter) match(e *observe.Event) bool {
	pod := f.pod
	if pod != "" && !strings.Contains(pod, "/") {
		pod = f.namespace + "/" + pod
	}
	either := func(want string) bool { return endMatches(&e.Source, want) || endMatches(&e.Destination, want) }
	return (f.namespace == "" || either(f.namespace)) && (pod == "" || either(pod)) &&
		(f.from == "" || endMatches(&e.Source, f.from)) && (f.to == "" || endMatches(&e.Destination, f.to)) &&
		(f.port == 0 || e.Destination.Port == f.port) &&
		(len(f.carried) == 0 || slices.Contains(f.carried, string(e.Carried)))
}

// endMatches reports whether an end is what was named: an address, a range, a namespace, or the beginning of a pod's name.
func endMatches(e *observe.End, want string) bool {
	if prefix, err := netip.ParsePrefix(want); err == nil {
		return prefix.Contains(e.Address)
	}
	if address, err := netip.ParseAddr(want); err == nil {
		return e.Address == address
	}
	workload := e.Workload
	if workload == "" { // of another cluster, or gone: the identity names namespace and service account
		if _, path, ok := strings.Cut(e.Identity, "/ns/"); ok {
			namespace, account, _ := strings.Cut(path, "/sa/")
			workload = namespace + "/" + account
		}
	}
	if strings.Contains(want, "/") {
		return strings.HasPrefix(workload, want)
	}
	namespace, _, _ := strings.Cut(workload, "/")
	return namespace != "" && namespace == want
}

// print writes the lines. Followed, they have columns of fixed width.
func (p *flowPrinter) print(flows []nodeFlow) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b bytes.Buffer
	var err error
	switch p.output {
	case "json":
		e := json.NewEncoder(&b)
		for i := 0; i < len(flows) && err == nil; i++ {
			err = e.Encode(&flows[i])
		}
	case "yaml":
		for i := 0; i < len(flows) && err == nil; i++ {
			var text []byte
			text, err = yaml.Marshal(&flows[i])
			b.WriteString("---\n" + string(text))
		}
	default:
		err = p.table(&b, flows)
	}
	if err == nil {
		_, err = p.w.Write(b.Bytes())
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func (p *flowPrinter) table(b *bytes.Buffer, flows []nodeFlow) error {
	var rows [][]string
	if !p.headed {
		p.headed = true
		rows = append(rows, p.header())
	}
	for i := range flows {
		rows = append(rows, p.columns(&flows[i]))
	}
	if p.follow { // the widths of what comes are not known
		for _, row := range rows {
			for i, width := range [...]int{12, 10, 9, 10, 30, 30, 5, 12} {
				row[i] = fmt.Sprintf("%-*s", width, row[i])
			}
			fmt.Fprintln(b, strings.Join(row, "  "))
		}
		return nil
	}
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if len(flows) == 0 {
		fmt.Fprintln(t, "(none)")
	}
	return t.Flush()
}

func (p *flowPrinter) header() []string {
	h := []string{"TIME", "NODE", "CARRIED", "STATE", "SOURCE", "DESTINATION", "PORT", "BYTES", "WHY"}
	if p.output == "wide" {
		h = append(h, "SOURCE IDENTITY", "DESTINATION IDENTITY", "POLICY", "SEEN AT")
	}
	return h
}

func (p *flowPrinter) columns(n *nodeFlow) []string {
	row := []string{n.Time.Local().Format(time.TimeOnly + ".000"), n.Node, string(n.Carried), flowState(&n.Event),
		endName(&n.Source, p.output == "wide"), endName(&n.Destination, p.output == "wide"), fmt.Sprint(n.Destination.Port),
		fmt.Sprintf("%d/%d", n.Sent, n.Received), orDash(n.Reason)}
	if p.output == "wide" {
		at := "source"
		if n.Inbound {
			at = "destination"
		}
		row = append(row, orDash(n.Source.Identity), orDash(n.Destination.Identity), orDash(n.Policy), at)
	}
	for i := range row {
		row[i] = plain(row[i])
	}
	return row
}

func flowState(e *observe.Event) string {
	state := "closed"
	switch {
	case e.Carried == observe.Refused || e.Carried == observe.Failed:
		state = "-"
	case e.Number == 0:
		state = "opened"
	case e.Open:
		state = "open"
	case !e.Opened.IsZero() && !e.Closed.IsZero():
		state = e.Closed.Sub(e.Opened).Round(time.Millisecond).String()
	}
	if e.Count > 1 {
		state += fmt.Sprintf(" (%d times)", e.Count)
	}
	return state
}

func endName(e *observe.End, wide bool) string {
	name := ""
	switch {
	case e.Workload != "":
		name = e.Workload
	case e.Node != "":
		name = "node " + e.Node
	case e.Address.IsValid():
		return e.Address.String()
	default:
		return orDash(e.Identity)
	}
	if wide && e.Address.IsValid() {
		name += " (" + e.Address.String() + ")"
	}
	return name
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
