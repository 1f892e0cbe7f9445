package tunnel

import (
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

// naming is what metrics call a pod; empty when the agent has not said.
type naming struct{ workload, application, revision string }

func parseNaming(m *control.Naming) naming {
	return naming{workload: m.GetWorkload(), application: m.GetService(), revision: m.GetRevision()}
}

// cluster is what metrics call the cluster, and the domain of its Services.
type cluster struct{ id, domain string }

// party returns the workload as one end of a connection.
func (s *spec) party() party {
	return party{workload: s.name, identity: s.identity.String(), naming: s.naming}
}

// labels are those of one end of a connection. Of whoever the agent has not named, no more is said than the certificate does.
func (t *tunnel) labels(p party) telemetry.Party {
	here := cluster{}
	if c := t.cluster.Load(); c != nil {
		here = *c
	}
	l := telemetry.PartyOf(p.identity)
	namespace, _, _ := strings.Cut(p.workload, "/")
	switch {
	case p.naming != naming{}:
		l = telemetry.Party{
			Workload: p.naming.workload, Namespace: namespace, Principal: p.identity,
			Application: p.naming.application, Revision: p.naming.revision, Cluster: here.id,
		}
	case p.identity == "":
		l.Namespace = namespace
	case t.ids.member(p.identity):
		l.Cluster = here.id
	}
	if namespace, name, ok := strings.Cut(p.service, "/"); ok {
		l.Service = telemetry.Service{Name: name, Namespace: namespace, Domain: here.domain}
		l.Cluster = here.id
	}
	return l.Bounded()
}

// member says whether an identity is of our own trust domain.
func (s *identities) member(identity string) bool {
	name, _, _ := strings.Cut(strings.TrimPrefix(identity, "spiffe://"), "/")
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.accepted.has(domain)
}
