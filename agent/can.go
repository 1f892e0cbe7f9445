package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

// question is what is asked, with everything looked up.
type question struct {
	router
	from        *place // nil: outside
	destination destinationOf
	verdict     *admin.Verdict
}

// destinationOf is where a client connects to.
type destinationOf struct {
	service   *source.Service // nil: a pod
	pod       *source.Pod
	addresses []netip.Addr
	port      uint16
	backends  []netip.AddrPort // where kube-proxy leads a client that is not in the mesh
}

// Can implements admin.CanNode.
func (i inspector) Can(ctx context.Context, ask admin.Question) (*admin.Verdict, error) {
	q := &question{verdict: &admin.Verdict{
		Node: i.agent.Node, From: ask.From, To: ask.To, Service: ask.Service,
		Endpoints: []admin.EndpointVerdict{}, Warnings: []string{},
	}}
	if err := i.lookUp(ctx, q, ask); err != nil {
		return nil, err
	}
	to, err := q.address()
	if err != nil {
		return nil, err
	}
	q.foretell(to)
	q.warn()
	if q.from != nil && q.from.enrolled != nil && q.verdict.Outcome != admin.OutcomePlaintext {
		svid, err := certificateOf(i.agent.keeper.Status(), q.from.enrolled.identity.String())
		if err != nil {
			return nil, err
		}
		for _, text := range certificateWarnings(svid) {
			q.verdict.Warnings = append(q.verdict.Warnings, q.verdict.From+": "+text)
		}
	}
	if ask.Try {
		if err := i.try(ctx, q, to); err != nil {
			return nil, err
		}
	}
	return q.verdict, nil
}

func (i inspector) lookUp(ctx context.Context, q *question, ask admin.Question) (err error) {
	if ask.From == admin.Outside {
		q.verdict.FromReason = "outside: a client that is in no mesh"
		err = i.inspect(ctx, func(a *Agent) (err error) {
			q.router, err = a.frozen()
			return err
		})
	} else if q.from, err = i.placeOf(ctx, ask.From); err == nil {
		q.router, q.verdict.From = q.from.router, q.from.pod.Ref()
		q.client()
	}
	if err != nil {
		return err
	}
	q.destination, err = q.find(ask)
	return err
}

// client says what the near side is.
func (q *question) client() {
	p := q.from
	d := enroll.Decide(p.snapshot.Namespace(p.pod.Namespace), p.pod, p.enroll)
	q.verdict.FromEnrolled, q.verdict.FromReason = p.enrolled != nil, d.Reason
	if p.enrolled != nil {
		q.verdict.FromIdentity = p.enrolled.identity.String()
	} else if p.wanted {
		q.verdict.FromReason = "it is to be enrolled and is not: " + cmp.Or(p.problem, "its network namespace is looked for")
	}
}

// find looks the far side up, and which of its ports is meant.
func (r *router) find(ask admin.Question) (destinationOf, error) {
	if !ask.Service {
		pod, err := podNamed(r.snapshot, ask.To)
		if err != nil {
			return destinationOf{}, err
		}
		port, err := podPort(pod, ask.Port)
		d := destinationOf{pod: pod, port: port, addresses: pod.Addresses}
		for _, a := range pod.Addresses {
			d.backends = append(d.backends, netip.AddrPortFrom(a.Unmap(), port))
		}
		return d, err
	}
	service, err := serviceNamed(r.snapshot, ask.To)
	if err != nil {
		return destinationOf{}, err
	}
	port, err := portOfService(service, ask.Port)
	if err != nil {
		return destinationOf{}, err
	}
	d := destinationOf{service: service, port: port.Port, addresses: service.Addresses, backends: port.Endpoints}
	return d, nil
}

// podPort is the number of a port; the error lists those that the pod declares. The ports of pods of other nodes are not
// known.
func podPort(pod *source.Pod, port string) (uint16, error) {
	if n := pod.Ports[port]; n != 0 {
		return n, nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
		return uint16(n), nil
	}
	if port == "" && len(pod.ContainerPorts) == 1 {
		return pod.ContainerPorts[0], nil
	}
	var names []string
	for _, n := range pod.ContainerPorts {
		names = append(names, strconv.Itoa(int(n)))
	}
	for name, n := range pod.Ports {
		names = append(names, fmt.Sprintf("%s (%d)", name, n))
	}
	return 0, noPort("pod "+pod.Ref(), port, names)
}

func portOfService(s *source.Service, port string) (source.ServicePort, error) {
	var names []string
	for _, p := range s.Ports {
		if port != "" && (port == p.Name || port == strconv.Itoa(int(p.Port))) || port == "" && len(s.Ports) == 1 {
			return p, nil
		}
		names = append(names, strings.TrimSpace(p.Name+" "+strconv.Itoa(int(p.Port))))
	}
	return source.ServicePort{}, noPort("Service "+s.Ref(), port, names)
}

func noPort(whose, port string, names []string) error {
	text := fmt.Sprintf("%s: say which port", whose)
	if port != "" {
		text = fmt.Sprintf("%s has no port %q", whose, port)
	}
	if len(names) > 0 {
		return fmt.Errorf("%s: it has %s", text, someNames(names))
	}
	return fmt.Errorf("%s by its number", text)
}

// address is what a client connects to: of several families the client's own, IPv4 first.
func (q *question) address() (netip.AddrPort, error) {
	d := &q.destination
	own := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} // outside: any family does
	if q.from != nil {
		own = q.from.pod.Addresses
	}
	all := slices.Clone(d.addresses)
	if d.service != nil && len(all) == 0 {
		for _, e := range d.backends { // headless: DNS leads to the endpoints
			all = append(all, e.Addr())
		}
	}
	address, ok := sameFamily(all, own)
	switch {
	case ok && d.service != nil && len(d.addresses) == 0:
		for _, e := range d.backends {
			if e.Addr().Unmap() == address {
				return netip.AddrPortFrom(address, e.Port()), nil
			}
		}
	case ok:
		return netip.AddrPortFrom(address, d.port), nil
	case len(all) == 0:
		return netip.AddrPort{}, fmt.Errorf("%s has no address: nobody can connect to it", q.verdict.To)
	}
	return netip.AddrPort{}, fmt.Errorf("%s and %s have no address of the same family", q.verdict.From, q.verdict.To)
}

// foretell says what becomes of a connection to this address.
func (q *question) foretell(to netip.AddrPort) {
	v := q.verdict
	v.Address = to.String()
	if !v.FromEnrolled {
		q.plain(to)
	} else {
		endpoints, reason, _ := q.route(q.from.pod, to)
		if q.destination.service != nil && len(q.destination.addresses) == 0 {
			endpoints = nil
			for _, b := range q.destination.backends { // of a headless Service the client chooses
				one, _, _ := q.route(q.from.pod, b)
				endpoints = append(endpoints, one...)
			}
		}
		for _, e := range endpoints {
			v.Endpoints = append(v.Endpoints, q.arrival(e))
		}
		v.Reason = reason
	}
	if len(v.Endpoints) == 0 {
		v.Outcome, v.Reason = admin.OutcomeRefused, cmp.Or(v.Reason, v.To+" has no ready endpoint")
		return
	}
	v.Outcome, v.Reason = sum(v.Endpoints)
}

// plain is for a client whose connections nobody touches.
func (q *question) plain(to netip.AddrPort) {
	for _, b := range q.destination.backends {
		if b.Addr().Is4() != to.Addr().Is4() {
			continue
		}
		e := &control.Endpoint{Address: b.Addr().AsSlice(), Port: uint32(b.Port()), Action: control.Action_ACTION_DIRECT, Reason: "the client is not in the mesh"}
		q.verdict.Endpoints = append(q.verdict.Endpoints, q.arrival(e))
	}
}

// arrival adds to what the client does what the server makes of it.
func (q *question) arrival(e *control.Endpoint) admin.EndpointVerdict {
	address, _ := netip.AddrFromSlice(e.Address)
	at := netip.AddrPortFrom(address.Unmap(), uint16(e.Port))
	described := q.describeEndpoint(at)
	v := admin.EndpointVerdict{
		Address: described.Address, Pod: described.Pod, Node: described.Node, InMesh: described.InMesh,
		Identity: e.Identity, Client: clientText(e, &described),
	}
	strict := false
	if described.InMesh {
		v.Mode = described.Mode
		v.Server = fmt.Sprintf("port %d is %s by policy %s", at.Port(), described.Mode, described.Policy)
		strict = described.Mode == policy.Strict.String()
	} else {
		v.Server = "not in the mesh: it takes what comes"
	}
	self := q.from != nil && v.Pod == q.verdict.From && v.Pod != ""
	own := at.Port() == hbonePort && described.InMesh
	switch {
	case e.Action == control.Action_ACTION_REFUSE:
		v.Outcome, v.RefusedBy = admin.OutcomeRefused, admin.SideClient
	case own && !self:
		v.Outcome, v.RefusedBy, v.Identity = admin.OutcomeRefused, admin.SideServer, ""
		v.Server = fmt.Sprintf("port %d is the tunnel's own, never an application's: it serves none but other tunnels", hbonePort)
	case e.Action == control.Action_ACTION_HBONE && !described.InMesh:
		v.Outcome, v.RefusedBy, v.Identity = admin.OutcomeRefused, admin.SideServer, ""
		v.Server = "no tunnel stands before it: nobody answers mTLS there"
	case e.Action == control.Action_ACTION_HBONE:
		v.Outcome, v.SameNode = admin.OutcomeMTLS, e.LocalWorkload != 0
	case self:
		v.Outcome, v.Server = admin.OutcomePlaintext, "what stays within a pod is not touched"
	case strict:
		v.Outcome, v.RefusedBy = admin.OutcomeRefused, admin.SideServer
	default:
		v.Outcome = admin.OutcomePlaintext
	}
	return v
}

// clientText says what decides for the client. Of a route, the reason is a policy's name where the server's mode does.
func clientText(e *control.Endpoint, at *admin.EndpointDescription) string {
	byRule := strings.HasPrefix(e.Reason, "DestinationRule ")
	switch {
	case e.Action == control.Action_ACTION_HBONE && byRule:
		return e.Reason + " wants mutual TLS"
	case e.Action == control.Action_ACTION_HBONE:
		return "the server takes mTLS, by policy " + e.Reason
	case e.Action == control.Action_ACTION_DIRECT && byRule:
		return e.Reason + " wants plaintext"
	case e.Action == control.Action_ACTION_DIRECT && at.InMesh && e.Reason == at.Policy:
		return "the server takes no mTLS, by policy " + e.Reason
	}
	return e.Reason
}

// sum is what holds for all endpoints together.
func sum(all []admin.EndpointVerdict) (admin.Outcome, string) {
	counts := map[admin.Outcome]int{}
	for i := range all {
		counts[all[i].Outcome]++
	}
	if len(counts) > 1 {
		return admin.OutcomeMixed, fmt.Sprintf("it depends on the endpoint: of %d, %d mTLS, %d plaintext, %d refused",
			len(all), counts[admin.OutcomeMTLS], counts[admin.OutcomePlaintext], counts[admin.OutcomeRefused])
	}
	first := &all[0]
	if tunnelsOwn(first) {
		return first.Outcome, first.Server
	}
	if first.RefusedBy == admin.SideServer && !first.InMesh {
		return first.Outcome, "the client uses mTLS (" + first.Client + "), and " + first.Server
	}
	if first.RefusedBy == admin.SideServer {
		return first.Outcome, "the client sends plaintext (" + first.Client + "), and " + first.Server
	}
	return first.Outcome, first.Client
}

// warn adds what may make the verdict a wrong one.
func (q *question) warn() {
	add := func(format string, args ...any) {
		q.verdict.Warnings = append(q.verdict.Warnings, fmt.Sprintf(format, args...))
	}
	if p := q.from; p != nil {
		if slices.Contains(p.pod.Containers, "istio-proxy") {
			add("%s has a proxy of its own, which may do something else", q.verdict.From)
		}
		if p.enrolled != nil && p.tunnels == 0 {
			add("no tunnel is connected to the node's agent: new connections wait and are reset")
		}
	}
	seen := map[string]bool{}
	for i := range q.verdict.Endpoints {
		namespace, _, ok := strings.Cut(q.verdict.Endpoints[i].Pod, "/")
		if ok && !seen[namespace] && q.snapshot.PolicyUnreadable(namespace, q.root) {
			seen[namespace] = true
			add("a policy that may apply to namespace %s cannot be read: its nodes loosen nothing until it can", namespace)
		}
	}
}
