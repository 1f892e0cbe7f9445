package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

const (
	maxConnections = 8192
	// An agent has one connection, and all agents of a node may have its address. Where masquerading gives more nodes than
	// that one address, the others come by turns: agents try again, and a connection ends with its age.
	maxConnectionsOfAddress = 32
	maxStreams              = 24       // of one connection at once: an agent has 16 requests and a stream
	maxRequestBytes         = 32 << 10 // a CSR is most of it
	windowBytes             = 64 << 10 // what is taken of a stream that nobody reads; set, so that it does not grow
	connWindowBytes         = 1 << 20
	idleTimeout             = 10 * time.Second // a connection without a request or a stream; agents have one
	handshakeTimeout        = 10 * time.Second
	requestTimeout          = 10 * time.Second
	drainTimeout            = 5 * time.Second
	maxHeaderBytes          = 32 << 10 // a token is most of it
)

// Run is the CA. It returns when ctx ends, or when it cannot serve.
func Run(ctx context.Context, o Options) error {
	client, err := kube.NewClient(o.Kubeconfig)
	if err != nil {
		return fmt.Errorf("CA: %w", err)
	}
	return Serve(ctx, o, client, nil)
}

// Serve is Run with a client that is there already. It calls started, if any, with the addresses once it listens.
func Serve(ctx context.Context, o Options, client *kube.Client, started func(service, status net.Addr)) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	service, err := net.Listen("tcp", o.Address)
	if err != nil {
		return fmt.Errorf("CA: %w", err)
	}
	defer service.Close()
	status, err := net.Listen("tcp", o.StatusAddress)
	if err != nil {
		return fmt.Errorf("CA: status: %w", err)
	}
	defer status.Close()
	if started != nil {
		started(service.Addr(), status.Addr())
	}
	if err := serve(ctx, o, client, service, status); err != nil && ctx.Err() == nil {
		return fmt.Errorf("CA: %w", err)
	}
	return nil
}

func serve(ctx context.Context, o Options, client *kube.Client, service, status net.Listener) error {
	store := kube.NewStore(client, o.Namespace, o.TrustDomain, o.Logger)
	pods := kube.NewPods(client, o.Accounts)
	metrics := newMetrics(store.Authority)
	kubeMetrics := kube.NewMetrics()
	kubeMetrics.Register(metrics.registry)
	metrics.registry.MustRegister(o.Collectors...)
	leader := newLeader(o, client, store, kubeMetrics)
	tasks, ctx := errgroup.WithContext(ctx)
	var serving atomic.Bool
	if o.ServeStatus != nil {
		tasks.Go(func() error {
			return o.ServeStatus(ctx, status, metrics.registry, health([]condition{
				unless(func() bool { return store.Authority() != nil }, "the root is not read yet"),
				leader.condition,
				unless(pods.Synced, "the pods are not known yet"),
				unless(serving.Load, "gRPC is not served"),
			}))
		})
	}
	tasks.Go(func() error { return pods.Run(ctx) })
	tasks.Go(func() error { return leader.run(ctx) })
	tasks.Go(func() error {
		if err := store.Load(ctx); err != nil {
			return err
		}
		tasks.Go(func() error { return store.Run(ctx) })
		life := func() time.Duration { return shorter(o.SVIDLife, store.LongestSVID()) }
		issuer := newIssuer(o, store.Authority, life, kube.NewReviewer(client, o.Audiences, kubeMetrics), pods, metrics)
		bundles := newBundles(ctx, store, metrics)
		serving.Store(true)
		defer serving.Store(false)
		o.Logger.Info("CA started", "address", service.Addr().String(), "trust_domain", o.TrustDomain.Name(),
			"names", o.dnsNames(), "accounts", o.Accounts, "audiences", o.Audiences, "svid_life", o.SVIDLife.String())
		return serveGRPC(ctx, service, issuer, bundles, newServing(store.Authority, o.dnsNames(), life), metrics)
	})
	return tasks.Wait()
}

func unless(holds func() bool, missing string) condition {
	return func() string {
		if holds() {
			return ""
		}
		return missing
	}
}

// shorter is how long SVIDs live: a replica that was told to let them live longer than what the leader reckons with waits
// until that has learned of it.
func shorter(own, recorded time.Duration) time.Duration {
	if recorded > 0 {
		return min(own, recorded)
	}
	return own
}

func serveGRPC(ctx context.Context, l net.Listener, h wire.Handler, b *bundles, s *serving, m *metrics) error {
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(s.config())),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.InTapHandle(newGate(b, m).admit),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxSendMsgSize(wire.MaxMessage),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(windowBytes),
		grpc.InitialConnWindowSize(connWindowBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: idleTimeout,
			// Clients come back to whichever replica the Service gives them.
			MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: time.Minute,
			Time: 30 * time.Second, Timeout: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	wire.Register(g, h)
	bundlepb.RegisterTrustBundleServer(g, b)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		force := time.AfterFunc(drainTimeout, g.Stop)
		defer force.Stop()
		g.GracefulStop()
	})
	err := g.Serve(&listener{netutil.LimitListener(l, maxConnections), newPlaces(maxConnections, maxConnectionsOfAddress), m.connsRefused})
	if stop() {
		g.Stop()
		return fmt.Errorf("gRPC: %w", err)
	}
	<-stopped
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("gRPC: %w", err)
	}
	return nil
}
