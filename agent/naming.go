package agent

import (
	"cmp"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	// defaultCluster is what Istio calls a cluster that nobody has named.
	defaultCluster = "Kubernetes"
	// latestRevision is what Istio calls the revision of a pod that says none.
	latestRevision = "latest"
	// longestName bounds what a name takes of a message. Kubernetes has none that are longer.
	longestName = 253
)

// namingOf is what Istio's metrics call a pod.
func namingOf(p *source.Pod) *control.Naming {
	workload := cut(cmp.Or(p.Owner, p.Name))
	return &control.Naming{
		Workload: workload,
		Service:  cut(cmp.Or(p.Labels["service.istio.io/canonical-name"], p.Labels["app.kubernetes.io/name"], p.Labels["app"], workload)),
		Revision: cut(cmp.Or(p.Labels["service.istio.io/canonical-revision"], p.Labels["app.kubernetes.io/version"], p.Labels["version"], latestRevision)),
	}
}

func cut(name string) string {
	return strings.ToValidUTF8(name[:min(len(name), longestName)], "")
}

// renew takes over what changed of a pod, and tells tunnels when it is called something else now.
func (a *Agent) renew(w *workload, pod *source.Pod) {
	was := namingOf(w.pod)
	w.renew(pod)
	if !sameNaming(was, namingOf(w.pod)) {
		a.announceUpdate(w)
	}
}

// cluster tells a tunnel what this cluster and its Services are called.
func (a *Agent) cluster(m *control.Welcome) *control.Welcome {
	m.Cluster, m.ClusterDomain = cmp.Or(a.ClusterID, defaultCluster), cmp.Or(a.ClusterDomain, policy.DefaultClusterDomain)
	return m
}

// name says which Service an answer is about, and has the pods of one Deployment share their naming. Where it would not
// fit the message it is left out: connections come before labels.
func (r *router) name(answer *control.Route, to netip.AddrPort) {
	answer.Service = r.serviceAt(to)
	for i, e := range answer.Endpoints {
		if i > 0 && sameNaming(e.Naming, answer.Endpoints[i-1].Naming) {
			e.Naming = answer.Endpoints[i-1].Naming
		}
	}
	if proto.Size(answer) <= control.MaxMessage-answerSlack {
		return
	}
	for _, e := range answer.Endpoints {
		e.Naming = nil
	}
}

func sameNaming(a, b *control.Naming) bool {
	return a.GetWorkload() == b.GetWorkload() && a.GetService() == b.GetService() && a.GetRevision() == b.GetRevision()
}

// answerSlack is room for what a message has around an answer.
const answerSlack = 1 << 10

// serviceAt is the Service that an address belongs to, as route understands it.
func (r *router) serviceAt(to netip.AddrPort) string {
	if service := r.snapshot.ServiceByAddress(to); service != nil && r.serves(service, to) {
		return service.Ref()
	}
	if pod := r.snapshot.PodByAddress(to.Addr()); pod != nil {
		if service, _ := r.snapshot.HeadlessService(pod.Namespace, to); service != nil {
			return service.Ref()
		}
	}
	return ""
}
