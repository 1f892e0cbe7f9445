package wire_test

import (
	"context"
	"crypto/x509"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

type handler struct {
	asked  wire.Request
	answer wire.Answer
}

func (h *handler) CreateCertificate(_ context.Context, r wire.Request) (*wire.Answer, error) {
	h.asked = r
	return &h.answer, nil
}

func connect(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	register(g)
	var done sync.WaitGroup
	done.Go(func() {
		if err := g.Serve(l); err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); g.Stop(); done.Wait() })
	return conn
}

// What Istio's clients send is read, and they get the leaf first, one intermediate in each element, and what to trust
// in the last, the chain's own root at its head.
func TestIstiosClientWithOurServer(t *testing.T) {
	root, other := catest.Root(t, "root"), catest.Root(t, "other")
	middle := root.Intermediate(t, "middle")
	leaf := middle.Leaf(t, &catest.Key(t).PublicKey)
	h := &handler{answer: wire.Answer{Chain: []*x509.Certificate{leaf, middle.Cert}, Roots: []*x509.Certificate{root.Cert, other.Cert}}}
	conn := connect(t, func(g *grpc.Server) { wire.Register(g, h) })
	identity := "spiffe://cluster.local/ns/shop/sa/cart"
	metadata, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": identity, "ClusterID": "x"})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(t.Context(),
		&pb.IstioCertificateRequest{Csr: "csr", ValidityDuration: 86400, Metadata: metadata})
	if err != nil {
		t.Fatal(err)
	}
	if string(h.asked.CSR) != "csr" || h.asked.Identity != identity || h.asked.Life.Seconds() != 86400 {
		t.Errorf("asked %+v", h.asked)
	}
	want := [][]*x509.Certificate{{leaf}, {middle.Cert}, {root.Cert, other.Cert}}
	if len(answer.CertChain) != len(want) {
		t.Fatalf("%d elements, want %d", len(answer.CertChain), len(want))
	}
	for i, element := range answer.CertChain {
		certs, err := ca.ParseCertificates([]byte(element))
		if err != nil || len(certs) != len(want[i]) {
			t.Fatalf("element %d: %d certificates, %v", i, len(certs), err)
		}
		for j, c := range certs {
			if !c.Equal(want[i][j]) {
				t.Errorf("element %d, certificate %d is %q", i, j, c.Subject)
			}
		}
	}
	// A client that knows nothing of impersonation.
	if _, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(t.Context(), &pb.IstioCertificateRequest{Csr: "csr", ValidityDuration: -1}); err != nil {
		t.Fatal(err)
	}
	if h.asked.Identity != "" || h.asked.Life != 0 {
		t.Errorf("asked %+v", h.asked)
	}
}

type istiod struct {
	pb.UnimplementedIstioCertificateServiceServer
	chain []string
}

func (i istiod) CreateCertificate(context.Context, *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	return &pb.IstioCertificateResponse{CertChain: i.chain}, nil
}

// CAs put certificates into elements in several ways.
func TestOurClientWithIstiosServer(t *testing.T) {
	root, other := catest.Root(t, "root"), catest.Root(t, "other")
	middle := root.Intermediate(t, "middle")
	leaf := string(ca.EncodeCertificates([]*x509.Certificate{middle.Leaf(t, &catest.Key(t).PublicKey)}))
	m, r, o := string(catest.CertPEM(middle)), string(catest.CertPEM(root)), string(catest.CertPEM(other))
	for _, test := range []struct {
		name         string
		elements     []string
		chain, roots int
	}{
		{"one in each", []string{leaf, m, r}, 2, 1},
		{"no newline at the end", []string{strings.TrimSpace(leaf), strings.TrimSpace(m), strings.TrimSpace(r)}, 2, 1},
		{"chain in one, roots in one", []string{leaf, m + r, r + o}, 2, 3},
		{"no root", []string{leaf, m}, 2, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn := connect(t, func(g *grpc.Server) { pb.RegisterIstioCertificateServiceServer(g, istiod{chain: test.elements}) })
			a, err := wire.NewClient(conn).CreateCertificate(t.Context(), wire.Request{CSR: []byte("csr")})
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Chain) != test.chain || len(a.Roots) != test.roots {
				t.Errorf("%d in the chain and %d roots, want %d and %d", len(a.Chain), len(a.Roots), test.chain, test.roots)
			}
		})
	}
}
