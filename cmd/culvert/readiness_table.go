package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

// maxPeersShown keeps the table readable; wide shows all.
const maxPeersShown = 10

func writeReadiness(w io.Writer, r *readinessReport, wide bool) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(readinessHeader(r, wide), "\t"))
	for i := range r.Workloads {
		for k := range r.Workloads[i].Ports {
			fmt.Fprintln(t, strings.Join(readinessRow(r, &r.Workloads[i], &r.Workloads[i].Ports[k], wide), "\t"))
		}
	}
	if len(r.Workloads) == 0 {
		fmt.Fprintln(t, "(none)")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i := range r.Workloads {
		for k := range r.Workloads[i].Ports {
			if err := writePeers(&b, r, &r.Workloads[i], &r.Workloads[i].Ports[k], wide); err != nil {
				return err
			}
		}
	}
	writeRemarks(&b, r)
	fmt.Fprintf(&b, "\n%s\n", conclusion(r))
	_, err := io.WriteString(w, b.String())
	return err
}

func readinessHeader(r *readinessReport, wide bool) []string {
	h := []string{"WORKLOAD", "PORT", "MODE", "VERDICT", "PLAINTEXT PEERS", "MTLS", "WHY"}
	if len(r.Proposed) > 0 {
		h = append(h[:3], append([]string{"PROPOSED"}, h[3:]...)...)
	}
	if wide {
		h = append(h, "WATCHED SINCE", "POLICY", "NODES")
	}
	return h
}

func readinessRow(r *readinessReport, w *judgedWorkload, p *judgedPort, wide bool) []string {
	port := "any"
	if p.Port != 0 {
		port = fmt.Sprint(p.Port)
	}
	plaintext := 0
	for _, peer := range p.Peers {
		if peer.Carried == observe.Plaintext {
			plaintext++
		}
	}
	row := []string{workloadName(w), port, p.Mode.String()}
	if p.Proposed != nil {
		row = append(row, p.Proposed.Mode.String())
	} else if len(r.Proposed) > 0 {
		row = append(row, "-")
	}
	row = append(row, string(p.Verdict), fmt.Sprint(plaintext), fmt.Sprint(p.MTLS), orDash(p.Why))
	if wide {
		since := w.Since
		if w.Blind.After(since) {
			since = w.Blind
		}
		row = append(row, since.Local().Format(time.DateTime), p.Policy, strings.Join(w.Nodes, ","))
	}
	for i := range row {
		row[i] = plain(row[i])
	}
	return row
}

func workloadName(w *judgedWorkload) string {
	switch len(w.Pods) {
	case 0:
		return w.Namespace + "/" + w.Pod + " (gone)"
	case 1:
		return w.Pods[0]
	}
	return fmt.Sprintf("%s +%d", w.Pods[0], len(w.Pods)-1)
}

// writePeers lists who would be refused; with wide also those that stay.
func writePeers(b *strings.Builder, r *readinessReport, w *judgedWorkload, p *judgedPort, wide bool) error {
	peers, title := p.Breaks, "would be refused"
	most := maxPeersShown
	if wide {
		peers, title, most = p.Peers, "peers", len(p.Peers)
	}
	if len(peers) == 0 {
		return nil
	}
	fmt.Fprintf(b, "\n%s port %d, %s:\n", plain(workloadName(w)), p.Port, title)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  PEER\tADDRESS\tCARRIED\tCONNECTIONS\tLAST\tWHY")
	for i := range peers[:min(len(peers), most)] {
		peer := &peers[i]
		address := "-"
		if peer.Address.IsValid() {
			address = peer.Address.String()
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%d\t%s ago\t%s\n", plain(peerName(peer)), address, plain(string(peer.Carried)), peer.Count,
			short(r.Time.Sub(peer.Last)), plain(peerWhy(peer)))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if more := len(peers) - most; more > 0 {
		fmt.Fprintf(b, "  and %d more (-o wide)\n", more)
	}
	return nil
}

func peerName(p *admin.ObservedPeer) string {
	switch p.Kind {
	case observe.PeerPod:
		return "pod " + cmp.Or(p.Name, p.Identity, "unknown")
	case observe.PeerNode:
		return "node " + p.Name
	case observe.PeerUnknown:
		return "a pod that is gone, or an address of the cluster"
	}
	return "outside the cluster"
}

func peerWhy(p *admin.ObservedPeer) string {
	switch {
	case p.Carried == observe.Refused && p.Identity == "":
		return "the port was STRICT then"
	case p.Carried != observe.Plaintext:
		return "-"
	case p.Why != "":
		return "enrolled, but " + p.Why
	case p.Kind == observe.PeerPod:
		return "not enrolled"
	}
	return "not in the mesh"
}

func writeRemarks(b *strings.Builder, r *readinessReport) {
	b.WriteString("\n")
	unfit := 0
	for _, n := range r.NotEnrolled {
		if !n.Wanted {
			unfit++
			continue
		}
		fmt.Fprintf(b, "not enrolled: pod %s on node %s: %s\n", plain(n.Pod), plain(n.Node), plain(n.Reason))
	}
	if unfit > 0 {
		fmt.Fprintf(b, "%s outside of the mesh: no policy applies to them\n", plural(unfit, "pod"))
	}
	for _, n := range r.SilentNodes {
		fmt.Fprintf(b, "node %s does not answer, and what it saw is not known: %s\n", plain(n.Node), plain(n.Error))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(b, "note: %s\n", plain(n))
	}
	fmt.Fprintf(b, "%s of kubelets not counted\n", plural(int(min(r.ProbesExcluded, 1<<31-1)), "probe"))
}

func conclusion(r *readinessReport) string {
	subject := "STRICT"
	if len(r.Proposed) > 0 {
		subject = plural(len(r.Proposed), "proposed policy")
		if len(r.Proposed) > 1 {
			subject = fmt.Sprintf("%d proposed policies", len(r.Proposed))
		}
	}
	broken := 0
	for i := range r.Workloads {
		for k := range r.Workloads[i].Ports {
			broken += len(r.Workloads[i].Ports[k].Breaks)
		}
	}
	window := "within the last " + short(r.Window)
	switch r.Verdict {
	case verdictNotReady:
		return fmt.Sprintf("%s: %s would refuse %s seen %s", r.Verdict, subject, plural(broken, "peer"), window)
	case verdictUnknown:
		return fmt.Sprintf("%s: nothing is known that %s would refuse, but not all is known of what came %s", r.Verdict, subject, window)
	}
	return fmt.Sprintf("%s: %s would refuse nobody who came %s", r.Verdict, subject, window)
}
