package admin

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/policy"
)

const pathReadiness = "/v1/readiness"

// Ready is the part of a Node that tells who came to its workloads, and how.
type Ready interface {
	// Readiness returns what was seen in the window; "" as namespace is all.
	Readiness(ctx context.Context, namespace string, window time.Duration) (*Readiness, error)
}

// ReadinessForm counts the changes after which an older agent's answer is not enough.
const ReadinessForm = 2

// Readiness is what an agent has seen that matters to whoever wants to switch on STRICT.
type Readiness struct {
	Answer
	// Form is ReadinessForm of the agent. One that is older does not tell all that a verdict takes.
	Form int    `json:"form"`
	Node string `json:"node"`
	// EnrolledOn are all nodes that have enrolled pods of the namespaces that were asked for.
	EnrolledOn    []string     `json:"enrolledOn,omitempty"`
	NodeAddresses []netip.Addr `json:"nodeAddresses,omitempty"`
	Since         time.Time    `json:"since"`            // when the node began to watch
	Dropped       time.Time    `json:"dropped,omitzero"` // plaintext seen until then may be missing
	KnownNames    []string     `json:"namespaces"`       // that the node has pods of; the one asked for, if it exists
	Workloads     []Observed   `json:"workloads"`
	// NotEnrolled are pods of this node to which no policy applies.
	NotEnrolled []NotEnrolled `json:"notEnrolled,omitempty"`
	// RootNamespace, Policies and UnreadablePolicies are the PeerAuthentications in force for those workloads.
	RootNamespace      string   `json:"rootNamespace"`
	Policies           []Policy `json:"policies"`
	UnreadablePolicies []string `json:"unreadablePolicies,omitempty"`
	// ProbesExcluded are connections of the node's kubelet that were let through as probes, since the programs were
	// loaded. They are among no peers.
	ProbesExcluded uint64 `json:"probesExcluded"`
}

// Observed is a workload: the pods of a namespace with the same service account and lasting labels.
type Observed struct {
	observe.Workload
	Pods  []string       `json:"pods,omitempty"` // that are enrolled here now
	Since time.Time      `json:"since"`          // when this node began to watch it
	Blind time.Time      `json:"blind,omitzero"` // until when a pod of it ran here that nobody watched
	Ports []ObservedPort `json:"ports,omitempty"`
	// Elsewhere are the other nodes that have pods of it, or had some in the window, and a time at which they did.
	Elsewhere map[string]time.Time `json:"elsewhere,omitempty"`
}

// ObservedPort is a port that the pods declare, or that somebody came to.
type ObservedPort struct {
	Port     uint16         `json:"port"`
	Declared bool           `json:"declared,omitempty"`
	Peers    []ObservedPeer `json:"peers,omitempty"`
}

// ObservedPeer is who came, and how.
type ObservedPeer struct {
	observe.Peer
	Carried observe.Carried `json:"carried"`
	Count   uint64          `json:"count"`
	First   time.Time       `json:"first"`
	Last    time.Time       `json:"last"`
	// EnrolledNow says that the peer is in the mesh, and Why why it came in plaintext all the same.
	EnrolledNow bool   `json:"enrolledNow,omitempty"`
	Why         string `json:"why,omitempty"`
}

// NotEnrolled is a pod without a tunnel.
type NotEnrolled struct {
	Pod    string `json:"pod"`
	Reason string `json:"reason"`
	Wanted bool   `json:"wanted,omitempty"` // it asks to be enrolled
}

// Policy is a PeerAuthentication.
type Policy struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Created   time.Time         `json:"created,omitzero"`
	Selector  map[string]string `json:"selector,omitempty"`
	Mode      string            `json:"mode"`
	Ports     map[uint16]string `json:"ports,omitempty"`
}

// NewPolicy returns p for the wire.
func NewPolicy(p *policy.PeerAuthentication) Policy {
	w := Policy{Namespace: p.Namespace, Name: p.Name, Created: p.Created, Selector: p.Selector, Mode: p.Mode.String()}
	for port, mode := range p.Ports {
		if w.Ports == nil {
			w.Ports = map[uint16]string{}
		}
		w.Ports[port] = mode.String()
	}
	return w
}

// Parse is the policy that was sent.
func (p *Policy) Parse() (policy.PeerAuthentication, error) {
	a := policy.PeerAuthentication{Namespace: p.Namespace, Name: p.Name, Created: p.Created, Selector: p.Selector,
		SelectorPresent: len(p.Selector) > 0}
	var err error
	if a.Mode, err = policy.ParseMode(p.Mode); err != nil {
		return a, err
	}
	for port, text := range p.Ports {
		mode, err := policy.ParseMode(text)
		if err != nil {
			return a, err
		}
		if a.Ports == nil {
			a.Ports = map[uint16]policy.Mode{}
		}
		a.Ports[port] = mode
	}
	return a, nil
}

// Readiness implements Ready.
func (c *Client) Readiness(ctx context.Context, namespace string, window time.Duration) (*Readiness, error) {
	ctx, cancel := context.WithTimeout(ctx, certificatesTimeout)
	defer cancel()
	q := url.Values{"namespace": {namespace}, "window": {window.String()}}
	out := &Readiness{}
	return out, c.call(ctx, http.MethodGet, pathReadiness+"?"+q.Encode(), nil, out)
}

// registerReadiness adds the call.
func registerReadiness(mux *http.ServeMux, s *server, node Ready) {
	mux.Handle("GET "+pathReadiness, query(s, func(ctx context.Context, q url.Values) (*Readiness, error) {
		window := observe.DefaultWindow
		err := onlyKnown(q, "namespace", "window")
		if v := q.Get("window"); err == nil && v != "" {
			window, err = time.ParseDuration(v)
		}
		switch {
		case err != nil:
			return nil, errBadRequest(err.Error())
		case window <= 0:
			return nil, errBadRequest("window: must be positive")
		}
		a, err := node.Readiness(ctx, q.Get("namespace"), window)
		if err == nil {
			a.Answer = s.answer()
		}
		return a, err
	}))
}
