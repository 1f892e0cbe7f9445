package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

// BenchmarkIssue is a certificate from key to verified SVID, client and server on this machine, over TLS. The
// processor's time counts both.
func BenchmarkIssue(b *testing.B) {
	s := start(b, callers(), placed(), func(o *Options) { o.NodeRate, o.NodeBurst = 1e9, 1e9 })
	c := s.client(b, "agent of a")
	b.SetParallelism(16)
	measured(b, func() error {
		_, err := c.Issue(context.Background(), identity.Workload{ID: id("shop", "cart")})
		return err
	})
}

// BenchmarkIssueReadyRequest is the same with a request that was made beforehand, and whose answer is not verified: key,
// CSR and check are the agents' work.
func BenchmarkIssueReadyRequest(b *testing.B) {
	s := start(b, callers(), placed(), func(o *Options) { o.NodeRate, o.NodeBurst = 1e9, 1e9 })
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.EncodeCertificates(s.authority.Roots()))
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "culvert-ca.culvert-system"})))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := pb.NewIstioCertificateServiceClient(conn)
	r := &pb.IstioCertificateRequest{Csr: string(csr(b, "")), Metadata: &structpb.Struct{
		Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(id("shop", "cart").String())}}}
	ctx := metadata.AppendToOutgoingContext(context.Background(), wire.AuthorizationKey, "Bearer agent of a")
	b.SetParallelism(16)
	measured(b, func() error {
		_, err := client.CreateCertificate(ctx, r)
		return err
	})
}

// BenchmarkCreateCertificate is the server's work alone: no gRPC, no TLS, no client.
func BenchmarkCreateCertificate(b *testing.B) {
	authority, err := ca.New(domain())
	if err != nil {
		b.Fatal(err)
	}
	o, err := Options{Namespace: "x", TrustDomain: domain(), NodeRate: 1e9, NodeBurst: 1e9, Logger: slog.New(slog.NewJSONHandler(io.Discard, nil))}.complete()
	if err != nil {
		b.Fatal(err)
	}
	o.Accounts = []string{agentOn("a").Account()}
	get := func() *ca.Authority { return authority }
	i := newIssuer(o, get, always(o.SVIDLife), callers(), placed(), newMetrics(get))
	r := wire.Request{CSR: csr(b, ""), Identity: id("shop", "cart").String()}
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(wire.AuthorizationKey, "Bearer agent of a"))
	measured(b, func() error {
		_, err := i.CreateCertificate(ctx, r)
		return err
	})
}

// measured runs f in parallel and reports what the processor spends on it, which others on the machine do not alter.
func measured(b *testing.B, f func() error) {
	before := processor(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := f(); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "issues/s")
	b.ReportMetric(float64((processor(b)-before).Microseconds())/float64(b.N), "cpu-µs/issue")
}

// processor is the time that this process has had of it.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
