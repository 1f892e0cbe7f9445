package spiffe

import (
	"context"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"

	"github.com/culvert-mesh/culvert/agent/identity"
)

// delegatedAPI is SPIRE's Delegated Identity API. SPIRE's agent looks at the process that has connected and wants one
// of its entries' SPIFFE IDs among its authorized_delegates.
type delegatedAPI struct {
	address string
	roots   *roots
	teller  *teller // of nobody in particular
	pace    pace
	conn    *grpc.ClientConn
	client  delegated.DelegatedIdentityClient
}

func dialDelegated(o Options, p pace, r *roots) (*delegatedAPI, error) {
	conn, err := connect(o.Admin, nil, p)
	if err != nil {
		return nil, err
	}
	return &delegatedAPI{address: o.Admin, roots: r, teller: &teller{}, pace: p, conn: conn, client: delegated.NewDelegatedIdentityClient(conn)}, nil
}

func (d *delegatedAPI) String() string { return "SPIRE Delegated Identity API " + d.address }

func (d *delegatedAPI) close() error { return d.conn.Close() }

// probe fetches the roots, without which no SVID can be looked at.
func (d *delegatedAPI) probe(ctx context.Context) error {
	next, err := d.bundles(ctx)
	if err == nil {
		err = next()
	}
	return err
}

// during keeps the roots up to date.
func (d *delegatedAPI) during(ctx context.Context) {
	for ctx.Err() == nil {
		next, err := d.bundles(ctx)
		for err == nil {
			err = next()
		}
		sleep(ctx, d.pace.maxRetry)
	}
}

// bundles returns what waits for the next set of roots and takes it. SPIRE's agent up to v1.15 does not tell that a
// trust domain has left the set before it is asked anew; which of them an SVID's holder trusts is told apart.
func (d *delegatedAPI) bundles(ctx context.Context) (next func() error, err error) {
	stream, err := d.client.SubscribeToX509Bundles(ctx, &delegated.SubscribeToX509BundlesRequest{})
	if err != nil {
		return nil, err
	}
	return func() error {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		all := make(map[spiffeid.TrustDomain][]byte, len(m.GetCaCertificates()))
		for name, der := range m.GetCaCertificates() {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				return fmt.Errorf("roots of trust domain %q: %w", name, err)
			}
			all[td] = der
		}
		return d.roots.put(d.teller, all)
	}, nil
}

func (d *delegatedAPI) subscribe(ctx context.Context, w identity.Workload) (func() (*answer, error), error) {
	stream, err := d.client.SubscribeToX509SVIDs(ctx, &delegated.SubscribeToX509SVIDsRequest{Selectors: selectors(w)})
	if err != nil {
		return nil, err
	}
	return func() (*answer, error) {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		a := &answer{}
		for _, s := range m.GetX509Svids() {
			id := s.GetX509Svid().GetId()
			a.offers = append(a.offers, offer{id: "spiffe://" + id.GetTrustDomain() + id.GetPath(),
				chain: slices.Concat(s.GetX509Svid().GetCertChain()...), key: s.GetX509SvidKey()})
		}
		if err := a.federate(m.GetFederatesWith()); err != nil {
			a.wipe()
			return nil, err
		}
		return a, nil
	}, nil
}

// selectors are what SPIRE's own attestor would find out about the pod, as far as it is known here.
func selectors(w identity.Workload) []*types.Selector {
	var all []*types.Selector
	for _, s := range []struct{ name, value string }{
		{"ns", w.Namespace}, {"sa", w.ServiceAccount}, {"pod-name", w.Pod}, {"pod-uid", w.UID},
	} {
		if s.value != "" {
			all = append(all, &types.Selector{Type: "k8s", Value: s.name + ":" + s.value})
		}
	}
	return all
}
