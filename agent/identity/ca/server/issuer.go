package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/limit"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

// Authenticator says who holds a token. from is where it came from, so that those who guess can be held off.
type Authenticator interface {
	Authenticate(ctx context.Context, token, from string) (ca.Caller, error)
}

// Placement says where pods are.
type Placement interface {
	// Runs reports whether a live pod of a service account is on a node.
	Runs(ctx context.Context, node, namespace, serviceAccount string) (bool, error)
	// Addresses returns those of a caller's pod and node, KnownAddresses those that are known without asking.
	Addresses(context.Context, ca.Caller) ([]netip.Addr, error)
	KnownAddresses(ca.Caller) []netip.Addr
}

const (
	maxTokenBytes = 16 << 10
	maxInFlight   = 256 // requests being worked on; the others wait
)

// issuer answers requests for certificates.
type issuer struct {
	authority     func() *ca.Authority
	authenticator Authenticator
	placement     Placement
	accounts      []string
	life          func() time.Duration // the longest
	bound         bool                 // to its addresses is a caller
	places        chan struct{}
	nodes         *limit.Keyed
	refusals      *refusals
	metrics       *metrics
	log           *slog.Logger
}

func newIssuer(o Options, authority func() *ca.Authority, life func() time.Duration, authn Authenticator, placement Placement, m *metrics) *issuer {
	return &issuer{
		authority: authority, authenticator: authn, placement: placement,
		accounts: o.Accounts, life: life, bound: o.RequireAddress,
		places:   make(chan struct{}, maxInFlight),
		nodes:    limit.New(o.NodeRate, o.NodeBurst),
		refusals: newRefusals(o.Logger), metrics: m, log: o.Logger,
	}
}

// CreateCertificate implements wire.Handler. Outside, a refusal does not say why; the log does, under the number
// that the caller is told.
func (i *issuer) CreateCertificate(ctx context.Context, r wire.Request) (*wire.Answer, error) {
	select {
	case i.places <- struct{}{}:
		defer func() { <-i.places }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	began := time.Now()
	from := address(ctx)
	caller, answer, err := i.create(ctx, from, r)
	i.metrics.answered(err, time.Since(began))
	if err != nil {
		return nil, i.refuse(from, caller, r, err)
	}
	i.audit(from, caller, answer)
	return answer, nil
}

// audit writes the one line that tells everything of a certificate; it is never left out. With the issuer's serial and
// its own, a certificate is found even if two authorities should ever have given the same number.
func (i *issuer) audit(from string, caller ca.Caller, answer *wire.Answer) {
	leaf := answer.Chain[0]
	issuer := answer.Roots[0]
	if len(answer.Chain) > 1 {
		issuer = answer.Chain[1]
	}
	i.log.Info("certificate issued", "serial", leaf.SerialNumber.Text(16), "identity", leaf.URIs[0].String(),
		"issuer", issuer.Subject.CommonName, "issuer_serial", issuer.SerialNumber.Text(16), "root_serial", answer.Roots[0].SerialNumber.Text(16),
		"node", caller.Node, "account", caller.Account(), "pod", caller.Pod, "pod_uid", caller.PodUID,
		"not_before", leaf.NotBefore, "not_after", leaf.NotAfter, "key", leaf.PublicKeyAlgorithm.String(),
		"address", from, "address_is_pods", i.fromPod(caller, from))
}

// create decides. Cheap checks come before those that ask the API server.
func (i *issuer) create(ctx context.Context, from string, r wire.Request) (ca.Caller, *wire.Answer, error) {
	caller, err := i.authenticate(ctx, from)
	if err != nil {
		return caller, nil, err
	}
	if err := i.checkAddress(ctx, caller, from); err != nil {
		return caller, nil, err
	}
	if !i.nodes.Allow(caller.Node) {
		return caller, nil, failure{limited, fmt.Errorf("node %s asks too often", caller.Node)}
	}
	authority := i.authority()
	id, err := wanted(authority.TrustDomain(), caller, r.Identity)
	if err != nil {
		return caller, nil, failure{badIdentity, err}
	}
	key, err := ca.CheckCSR(r.CSR, id.ID)
	if err != nil {
		return caller, nil, failure{badCSR, err}
	}
	if err := i.authorize(ctx, caller, id); err != nil {
		return caller, nil, err
	}
	life := i.life()
	if r.Life > 0 {
		life = min(r.Life, life)
	}
	chain, err := authority.Sign(id.ID, key, life)
	if err != nil {
		return caller, nil, failure{internal, err}
	}
	return caller, &wire.Answer{Chain: chain, Roots: authority.Roots()}, nil
}

// authenticate proves that an agent asks, and on which node it runs.
func (i *issuer) authenticate(ctx context.Context, from string) (ca.Caller, error) {
	token, err := bearer(ctx)
	if err != nil {
		return ca.Caller{}, failure{unauthenticated, err}
	}
	caller, err := i.authenticator.Authenticate(ctx, token, from)
	switch {
	case errors.Is(err, ca.ErrUnavailable):
		return caller, failure{unavailable, err}
	case err != nil:
		return caller, failure{unauthenticated, err}
	case !slices.Contains(i.accounts, caller.Account()):
		return caller, failure{unauthenticated, fmt.Errorf("service account %s may not ask, only %s may",
			caller.Account(), strings.Join(i.accounts, ", "))}
	case caller.Node == "" || caller.Pod == "" || caller.PodUID == "":
		return caller, failure{unauthenticated, fmt.Errorf("the token of %s is not bound to a pod and its node", caller.Account())}
	}
	return caller, nil
}

// authorize allows the caller's own identity, which its token proves, and those of the pods on its node.
func (i *issuer) authorize(ctx context.Context, caller ca.Caller, id workload) error {
	if id.namespace+"/"+id.account == caller.Account() {
		return nil
	}
	runs, err := i.placement.Runs(ctx, caller.Node, id.namespace, id.account)
	switch {
	case err != nil:
		return failure{unavailable, err}
	case !runs:
		return failure{notThere, fmt.Errorf("no live pod with the service account of %s is on node %s", id.ID, caller.Node)}
	}
	return nil
}

// workload is the identity of a service account.
type workload struct {
	spiffeid.ID
	namespace, account string
}

// wanted is whom the request is for.
func wanted(td spiffeid.TrustDomain, caller ca.Caller, text string) (workload, error) {
	if text == "" {
		id, err := spiffeid.FromSegments(td, "ns", caller.Namespace, "sa", caller.ServiceAccount)
		return workload{id, caller.Namespace, caller.ServiceAccount}, err
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return workload{}, fmt.Errorf("identity %q: %w", brief(text), err)
	}
	parts := strings.Split(id.Path(), "/") // the first is empty
	if !id.MemberOf(td) || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return workload{}, fmt.Errorf("identity %q: want spiffe://%s/ns/NAMESPACE/sa/ACCOUNT", brief(text), td)
	}
	return workload{id, parts[2], parts[4]}, nil
}

// bearer returns the token of a call.
func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get(wire.AuthorizationKey)
	if len(values) != 1 {
		return "", fmt.Errorf("token: %d authorization headers, want 1", len(values))
	}
	scheme, token := values[0][:min(len(values[0]), len(wire.BearerPrefix))], ""
	if strings.EqualFold(scheme, wire.BearerPrefix) {
		token = values[0][len(scheme):]
	}
	if token == "" || len(token) > maxTokenBytes {
		return "", errors.New("token: the authorization header is not that of a bearer token")
	}
	return token, nil
}

// brief bounds what a caller can put into the log.
func brief(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// refuse logs why, and returns what the caller gets to know.
func (i *issuer) refuse(from string, caller ca.Caller, r wire.Request, err error) error {
	f := failure{internal, err}
	errors.As(err, &f)
	number := i.refusals.log(string(f.class), "error", f.err, "identity", brief(r.Identity), "node", caller.Node,
		"account", caller.Account(), "pod", caller.Pod, "pod_uid", caller.PodUID, "address", from)
	switch f.class {
	case limited:
		return status.Errorf(codes.ResourceExhausted, "too many requests; the CA's log has more under refusal %s", number)
	case unavailable:
		return status.Errorf(codes.Unavailable, "cannot be decided now; the CA's log has more under refusal %s", number)
	case internal:
		return status.Errorf(codes.Internal, "the CA failed; its log has more under refusal %s", number)
	default:
		return status.Errorf(codes.PermissionDenied, "refused; the CA's log says why under refusal %s", number)
	}
}
