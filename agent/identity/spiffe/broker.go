package spiffe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/culvert-mesh/culvert/agent/identity"
)

// nobody is a UID that no pod has.
const nobody = "00000000-0000-0000-0000-000000000000"

// brokerAPI is the SPIFFE Broker API.
type brokerAPI struct {
	address string
	self    *self
	conn    *grpc.ClientConn
	client  broker.APIClient
}

// dialBroker starts asking for the SVID that we show to the broker.
func dialBroker(ctx context.Context, tasks *sync.WaitGroup, o Options, p pace) (*brokerAPI, error) {
	own, err := newSelf(o, p)
	if err != nil {
		return nil, err
	}
	conn, err := connect(o.Broker, tlsconfig.MTLSClientConfig(own, own, tlsconfig.AuthorizeMemberOf(o.TrustDomain)), p)
	if err != nil {
		return nil, errors.Join(err, own.conn.Close())
	}
	tasks.Go(func() { own.run(ctx) })
	return &brokerAPI{address: o.Broker, self: own, conn: conn, client: broker.NewAPIClient(conn)}, nil
}

func (b *brokerAPI) String() string { return "SPIFFE Broker API " + b.address }

func (b *brokerAPI) close() error { return errors.Join(b.conn.Close(), b.self.conn.Close()) }

func (b *brokerAPI) during(ctx context.Context) { <-ctx.Done() }

// probe asks for a pod that does not exist. This finds out as well whether we may ask for pods at all, and whether the
// agent can look them up.
func (b *brokerAPI) probe(ctx context.Context) error {
	if err := b.self.wait(ctx); err != nil {
		return err
	}
	next, err := b.ask(ctx, &broker.KubernetesObjectReference{Uid: nobody})
	if err == nil {
		_, err = next.Recv()
	}
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

func (b *brokerAPI) subscribe(ctx context.Context, w identity.Workload) (func() (*answer, error), error) {
	ref, err := reference(w)
	if err != nil {
		return nil, err
	}
	stream, err := b.ask(ctx, ref)
	if err != nil {
		return nil, err
	}
	return func() (*answer, error) {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return brokered(m)
	}, nil
}

// reference names the pod by its UID, which cannot come to mean another one.
func reference(w identity.Workload) (*broker.KubernetesObjectReference, error) {
	switch {
	case w.UID != "":
		return &broker.KubernetesObjectReference{Uid: w.UID}, nil
	case w.Pod != "" && w.Namespace != "":
		return &broker.KubernetesObjectReference{Key: &broker.KubernetesObjectKey{Namespace: w.Namespace, Name: w.Pod}}, nil
	}
	return nil, errors.New("the Broker API wants a pod's UID or name")
}

func (b *brokerAPI) ask(ctx context.Context, pod *broker.KubernetesObjectReference) (broker.API_SubscribeToX509SVIDClient, error) {
	pod.Type = &broker.KubernetesObjectType{Plural: "pods", Group: "core"}
	ref, err := anypb.New(pod)
	if err != nil {
		return nil, fmt.Errorf("reference to a pod: %w", err)
	}
	// The standard wants this header, which who is tricked into forwarding a request does not send.
	ctx = metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
	return b.client.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{
		Reference: &broker.WorkloadReference{Reference: ref}})
}

func brokered(m *broker.SubscribeToX509SVIDResponse) (*answer, error) {
	a := &answer{federated: make(map[spiffeid.TrustDomain][]byte, len(m.GetFederatedBundles()))}
	for _, s := range m.GetSvids() {
		a.offers = append(a.offers, offer{id: s.GetSpiffeId(), chain: s.GetX509Svid(), key: s.GetX509SvidKey(), ownRoots: s.GetBundle()})
	}
	if err := a.federate(slices.Collect(maps.Keys(m.GetFederatedBundles()))); err != nil {
		a.wipe()
		return nil, err
	}
	for name, der := range m.GetFederatedBundles() {
		a.federated[spiffeid.RequireTrustDomainFromString(name)] = der
	}
	return a, nil
}
