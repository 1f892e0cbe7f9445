// Package admin is what an agent tells the people who run its node: JSON over HTTP on a unix socket that root alone can
// use. The agent implements Node; `culvert certs` asks through a Client.
//
// A call is one line in newServer and one method of Client. Fields are only ever added to the types.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// DefaultSocket is where agents listen.
const DefaultSocket = "/run/culvert/admin.sock"

// ErrUnknownWorkload is in the error when a workload is not known: on this node, or, for the far side of a handshake,
// at all.
var ErrUnknownWorkload = errors.New("workload is not known")

// Node is an agent, for those who ask it. Its methods are called concurrently and end with their context.
type Node interface {
	// Certificates returns every identity in use on the node.
	Certificates(ctx context.Context) (*Certificates, error)
	// Handshake has the tunnel make a handshake as a connection of the workload from ("namespace/name", of this node)
	// to the workload to would make it. A handshake that failed is no error, but in the answer.
	Handshake(ctx context.Context, from, to string) (*Handshake, error)
	Flows
	Ready
	Reporter
	StatusNode
	DescribeNode
	CanNode
	LogNode
}

// Answer is part of every answer. The server fills it in.
type Answer struct {
	Version string    `json:"version"` // of the agent
	Time    time.Time `json:"time"`    // by the node's clock, which is the one that certificates there live by
}

// Certificates is what an agent knows of identities.
type Certificates struct {
	Answer
	Node        string   `json:"node"`
	TrustDomain string   `json:"trustDomain"`
	Aliases     []string `json:"aliases,omitempty"` // of the trust domain
	Source      string   `json:"source"`            // where SVIDs come from
	Bundles     []Bundle `json:"bundles"`           // the own trust domain's first
	SVIDs       []SVID   `json:"svids"`
}

// Bundle holds the roots of a trust domain.
type Bundle struct {
	TrustDomain string        `json:"trustDomain"`
	Roots       []Certificate `json:"roots"`
}

// SVID is an identity in use. Its key is never told.
type SVID struct {
	Identity    string        `json:"identity"`
	Workloads   []string      `json:"workloads"`       // "namespace/pod"
	Chain       []Certificate `json:"chain,omitempty"` // leaf first; empty: none yet
	Issued      time.Time     `json:"issued,omitzero"` // when it came
	NextRenewal *time.Time    `json:"nextRenewal,omitempty"`
	LastError   string        `json:"lastError,omitempty"`
	Failing     bool          `json:"failing,omitempty"` // the last attempt to get a new one did
	// HeldByTunnelOnly says that the agent was restarted since: the tunnel alone has the key.
	HeldByTunnelOnly bool     `json:"heldByTunnelOnly,omitempty"`
	FederatesWith    []string `json:"federatesWith,omitempty"`
}

// Certificate is an X.509 certificate, and what people look for in it.
type Certificate struct {
	Subject   string    `json:"subject"`
	Serial    string    `json:"serial"` // hexadecimal
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	SHA256    string    `json:"sha256"` // of DER, hexadecimal
	DER       []byte    `json:"der"`
}

// NewCertificate returns c for the wire.
func NewCertificate(c *x509.Certificate) Certificate {
	sum := sha256.Sum256(c.Raw)
	return Certificate{
		Subject: c.Subject.String(), Serial: c.SerialNumber.Text(16), Issuer: c.Issuer.String(),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, SHA256: hex.EncodeToString(sum[:]), DER: c.Raw,
	}
}

// NewChain returns certificates for the wire.
func NewChain(certs []*x509.Certificate) []Certificate {
	all := make([]Certificate, 0, len(certs))
	for _, c := range certs {
		all = append(all, NewCertificate(c))
	}
	return all
}

// ParseChain reads certificates from their DER.
func ParseChain(chain []Certificate) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, 0, len(chain))
	for i := range chain {
		c, err := x509.ParseCertificate(chain[i].DER)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i+1, err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// Stage is how far a handshake got: the stage that failed, or StageDone.
type Stage string

// The stages, in order.
const (
	StagePrepare   Stage = "prepare"   // the workload, its certificate, a socket
	StageConnect   Stage = "connect"   // TCP
	StageHandshake Stage = "handshake" // TLS, and what each side thinks of the other's certificate
	StageDone      Stage = "done"
)

// Handshake is what came of a handshake.
type Handshake struct {
	Answer
	Node             string        `json:"node"`
	From             string        `json:"from"`
	To               string        `json:"to"`
	FromIdentity     string        `json:"fromIdentity"`
	ExpectedIdentity string        `json:"expectedIdentity"` // what To must prove
	Address          string        `json:"address"`          // host:port
	Stage            Stage         `json:"stage"`
	Error            string        `json:"error,omitempty"`
	LocalChain       []Certificate `json:"localChain,omitempty"` // what the node of From presented
	PeerChain        []Certificate `json:"peerChain,omitempty"`  // what the node of To presented, verified or not
	Bundles          []Bundle      `json:"bundles"`              // as the node of From has them, the own trust domain's first
	Aliases          []string      `json:"aliases,omitempty"`    // of the own trust domain
	TLSVersion       string        `json:"tlsVersion,omitempty"`
	Cipher           string        `json:"cipher,omitempty"`
	Group            string        `json:"group,omitempty"`
	ConnectTime      time.Duration `json:"connectNanoseconds,omitempty"`
	HandshakeTime    time.Duration `json:"handshakeNanoseconds,omitempty"`
}

// OK reports whether both sides accepted each other.
func (h *Handshake) OK() bool { return h.Stage == StageDone && h.Error == "" }

const (
	pathCertificates = "/v1/certificates"
	pathHandshake    = "/v1/handshake"

	// versionHeader carries the version of Culvert that either side is.
	versionHeader = "Culvert-Version"
)

// handshakeRequest is the body of pathHandshake.
type handshakeRequest struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// failure is the body of every answer that is none.
type failure struct {
	Error  string `json:"error"`
	Reason string `json:"reason,omitempty"`
}

const reasonUnknownWorkload = "UnknownWorkload"
