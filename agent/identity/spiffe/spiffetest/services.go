package spiffetest

import (
	"bytes"
	"context"
	"crypto/x509"
	"reflect"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// state is what an answer about a pod is made from.
type state struct {
	Answer  Answer
	Bundles map[spiffeid.TrustDomain][]byte
}

// follow calls send with the state of a pod and again whenever that is another, until the stream ends.
func (a *Agent) follow(ctx context.Context, service, uid string, send func(state) error) error {
	var last *state
	a.mu.Lock()
	reset, delay := a.reset, a.delay
	if _, known := a.pods[uid]; known {
		a.opened[service]++
		a.streams++
		defer a.closed()
	} else {
		delay = 0
	}
	a.mu.Unlock()
	if !wait(ctx, delay) {
		return ctx.Err()
	}
	for {
		a.mu.Lock()
		refuse, changed := a.refuse[service], a.changed
		answer, known := a.pods[uid]
		s := &state{Answer: answer, Bundles: map[spiffeid.TrustDomain][]byte{}}
		for td, der := range a.bundles {
			s.Bundles[td] = der
		}
		a.mu.Unlock()
		switch {
		case refuse != nil:
			return refuse
		case service == Broker && !known:
			return status.Errorf(codes.NotFound, "pod with UID %s not found on agent node", uid)
		case last == nil || !reflect.DeepEqual(*last, *s):
			last = s
			if err := send(*s); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-reset:
			return status.Error(codes.Unavailable, "stream reset")
		case <-changed:
		}
	}
}

func (a *Agent) closed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams--
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

type brokerService struct {
	broker.UnimplementedAPIServer
	agent *Agent
}

// SubscribeToX509SVID implements the Broker API, of which it knows references to a pod by UID.
func (b brokerService) SubscribeToX509SVID(r *broker.SubscribeToX509SVIDRequest, stream grpc.ServerStreamingServer[broker.SubscribeToX509SVIDResponse]) error {
	if err := header(stream.Context(), "broker.spiffe.io"); err != nil {
		return err
	}
	var pod broker.KubernetesObjectReference
	if err := r.GetReference().GetReference().UnmarshalTo(&pod); err != nil {
		return status.Errorf(codes.InvalidArgument, "reference: %v", err)
	}
	if t := pod.GetType(); t.GetPlural() != "pods" || t.GetGroup() != "core" {
		return status.Error(codes.InvalidArgument, "not a pod")
	}
	return b.agent.follow(stream.Context(), Broker, pod.GetUid(), func(s state) error {
		m := &broker.SubscribeToX509SVIDResponse{FederatedBundles: map[string][]byte{}}
		for _, svid := range s.Answer.SVIDs {
			m.Svids = append(m.Svids, &broker.X509SVID{SpiffeId: svid.ID, X509Svid: svid.Chain,
				X509SvidKey: bytes.Clone(svid.Key), Bundle: s.Bundles[b.agent.TrustDomain]})
		}
		for _, td := range s.Answer.FederatesWith {
			if der := s.Bundles[td]; der != nil {
				m.FederatedBundles[td.IDString()] = der
			}
		}
		return stream.Send(m)
	})
}

type delegatedService struct {
	delegated.UnimplementedDelegatedIdentityServer
	agent *Agent
}

// SubscribeToX509SVIDs implements the Delegated Identity API, of which it looks at the selector k8s:pod-uid only.
func (d delegatedService) SubscribeToX509SVIDs(r *delegated.SubscribeToX509SVIDsRequest, stream grpc.ServerStreamingServer[delegated.SubscribeToX509SVIDsResponse]) error {
	uid := "none"
	for _, s := range r.GetSelectors() {
		if value, ok := strings.CutPrefix(s.GetValue(), "pod-uid:"); ok && s.GetType() == "k8s" {
			uid = value
		}
	}
	return d.agent.follow(stream.Context(), Delegated, uid, func(s state) error {
		m := &delegated.SubscribeToX509SVIDsResponse{}
		for _, svid := range s.Answer.SVIDs {
			id, err := spiffeid.FromString(svid.ID)
			if err != nil {
				return err
			}
			m.X509Svids = append(m.X509Svids, &delegated.X509SVIDWithKey{X509SvidKey: bytes.Clone(svid.Key), X509Svid: &types.X509SVID{
				Id: &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}, CertChain: split(svid.Chain)}})
		}
		for _, td := range s.Answer.FederatesWith {
			m.FederatesWith = append(m.FederatesWith, td.IDString())
		}
		return stream.Send(m)
	})
}

// split makes one text of each certificate, if they can be read.
func split(chain []byte) [][]byte {
	certs, err := x509.ParseCertificates(chain)
	if err != nil {
		return [][]byte{chain}
	}
	var all [][]byte
	for _, c := range certs {
		all = append(all, c.Raw)
	}
	return all
}

// SubscribeToX509Bundles implements the Delegated Identity API.
func (d delegatedService) SubscribeToX509Bundles(_ *delegated.SubscribeToX509BundlesRequest, stream grpc.ServerStreamingServer[delegated.SubscribeToX509BundlesResponse]) error {
	return d.agent.follow(stream.Context(), Delegated, "", func(s state) error {
		m := &delegated.SubscribeToX509BundlesResponse{CaCertificates: map[string][]byte{}}
		for td, der := range s.Bundles {
			m.CaCertificates[td.IDString()] = der
		}
		return stream.Send(m)
	})
}

type workloadService struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	agent *Agent
}

// FetchX509SVID implements the Workload API. It takes every caller for Culvert's agent.
func (w workloadService) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if err := header(stream.Context(), "workload.spiffe.io"); err != nil {
		return err
	}
	return w.agent.follow(stream.Context(), WorkloadAPI, "", func(s state) error {
		return stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: w.agent.own.ID, X509Svid: w.agent.own.Chain,
			X509SvidKey: bytes.Clone(w.agent.own.Key), Bundle: s.Bundles[w.agent.TrustDomain]}}})
	})
}

// header refuses who was tricked into sending a request, as the standards want it.
func header(ctx context.Context, name string) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(name); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}
