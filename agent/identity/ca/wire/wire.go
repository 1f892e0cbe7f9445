// Package wire is the protocol between a CA and those who ask it for certificates, for both sides: gRPC's
// istio.v1.auth.IstioCertificateService, as istiod serves it and its clients speak it.
package wire

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// The names of the metadata that go with a call, and of the field that names whom a certificate is for.
const (
	AuthorizationKey = "authorization"
	BearerPrefix     = "Bearer "
	ClusterKey       = "clusterid"
	impersonated     = "ImpersonatedIdentity"
)

const (
	// MaxMessage bounds a request and an answer, in bytes.
	MaxMessage      = 256 << 10
	maxCertificates = 32
)

// Request asks for one certificate.
type Request struct {
	CSR      []byte        // PEM
	Life     time.Duration // zero: the CA's default
	Identity string        // SPIFFE ID; empty: the caller's own
}

// Answer is a certificate and what is above it.
type Answer struct {
	Chain []*x509.Certificate // leaf first, without the root
	Roots []*x509.Certificate // first the one that Chain leads to
}

// Handler answers requests. Its errors go to the caller as they are.
type Handler interface {
	CreateCertificate(context.Context, Request) (*Answer, error)
}

// Register offers h on a gRPC server.
func Register(s grpc.ServiceRegistrar, h Handler) {
	pb.RegisterIstioCertificateServiceServer(s, service{handler: h})
}

type service struct {
	pb.UnimplementedIstioCertificateServiceServer
	handler Handler
}

func (s service) CreateCertificate(ctx context.Context, r *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	answer, err := s.handler.CreateCertificate(ctx, Request{
		CSR:      []byte(r.GetCsr()),
		Life:     seconds(r.GetValidityDuration()),
		Identity: r.GetMetadata().GetFields()[impersonated].GetStringValue(),
	})
	if err != nil {
		return nil, err
	}
	return &pb.IstioCertificateResponse{CertChain: encode(answer)}, nil
}

// seconds does not overflow, and takes what makes no sense for nothing asked, as istiod does.
func seconds(n int64) time.Duration {
	if n <= 0 {
		return 0
	}
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second
}

// encode puts one certificate into each element, and all roots into the last: Istio's clients take that one for
// what to trust, and those that read a single certificate of it get the root that the chain leads to.
func encode(a *Answer) []string {
	var elements []string
	for _, c := range a.Chain {
		elements = append(elements, string(ca.EncodeCertificates([]*x509.Certificate{c})))
	}
	return append(elements, string(ca.EncodeCertificates(a.Roots)))
}

// Client asks a CA.
type Client struct {
	service pb.IstioCertificateServiceClient
}

// NewClient returns a Client that uses the connection.
func NewClient(c grpc.ClientConnInterface) *Client {
	return &Client{service: pb.NewIstioCertificateServiceClient(c)}
}

// CreateCertificate makes one call and reads the answer; it verifies nothing.
func (c *Client) CreateCertificate(ctx context.Context, r Request, options ...grpc.CallOption) (*Answer, error) {
	m := &pb.IstioCertificateRequest{
		Csr: string(r.CSR), ValidityDuration: int64((r.Life + time.Second - 1) / time.Second),
	}
	if r.Identity != "" {
		m.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{impersonated: structpb.NewStringValue(r.Identity)}}
	}
	answer, err := c.service.CreateCertificate(ctx, m, options...)
	if err != nil {
		return nil, err
	}
	return decode(answer.GetCertChain())
}

// decode tells roots from intermediates by who signed them: CAs differ in how they put them into elements.
func decode(elements []string) (*Answer, error) {
	if len(elements) == 0 {
		return nil, errors.New("the CA's answer holds no certificate")
	}
	if len(elements) > maxCertificates {
		return nil, fmt.Errorf("the CA's answer has %d elements, want at most %d", len(elements), maxCertificates)
	}
	text := strings.Join(elements, "\n")
	if len(text) > MaxMessage {
		return nil, fmt.Errorf("the CA's answer has %d bytes, want at most %d", len(text), MaxMessage)
	}
	// It bounds the keys with which selfSigned verifies.
	certs, err := ca.ParseCertificates([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("the CA's answer: %w", err)
	}
	if len(certs) > maxCertificates {
		return nil, fmt.Errorf("the CA's answer has %d certificates, want at most %d", len(certs), maxCertificates)
	}
	a := &Answer{Chain: certs[:1:1]}
	for _, c := range certs[1:] {
		if selfSigned(c) {
			a.Roots = append(a.Roots, c)
		} else {
			a.Chain = append(a.Chain, c)
		}
	}
	return a, nil
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}
