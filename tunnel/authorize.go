package tunnel

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// clockSkew is how far a peer's certificate may begin in the future: authorities' clocks are not ours. Ends are kept
// to the second.
const clockSkew = 5 * time.Minute

// proof is what one TLS handshake proved. Its fields do not change once the handshake is complete.
type proof struct {
	own, peer spiffeid.ID
	chain     []*x509.Certificate // the peer's
	expires   time.Time           // the earlier end of the two sides' certificates: nothing is proved after it
	version   uint16
	cipher    uint16
	checked   atomic.Uint64 // identities.trust of the last time that the chain was good
	failed    atomic.Uint64 // and of the last time that it was not
}

// verify authenticates a certificate chain that a peer of own presents, against the roots as they are now. expires is
// the end of whatever ends first among the certificates that lead to a root.
func (s *identities) verify(own spiffeid.ID, chain []*x509.Certificate) (id spiffeid.ID, expires time.Time, err error) {
	if len(chain) == 0 {
		return id, expires, errors.New("no certificate presented")
	}
	if err := bounded(chain); err != nil {
		return id, expires, err
	}
	id, err = x509svid.IDFromCert(chain[0])
	if err != nil {
		return id, expires, fmt.Errorf("certificate identity: %w", err)
	}
	if !s.accepts(own, id.TrustDomain()) {
		return id, expires, fmt.Errorf("%s: trust domain not accepted", id)
	}
	now := time.Now()
	if begin := chain[0].NotBefore; begin.After(now) && begin.Sub(now) <= clockSkew {
		now = begin
	}
	_, paths, err := x509svid.Verify(chain, s, x509svid.WithTime(now))
	if err != nil {
		return id, expires, fmt.Errorf("%s: %w", id, err)
	}
	return id, latestEnd(paths), nil
}

const (
	maxPeerChain  = 10
	maxRSABits    = 4096
	usualExponent = 65537
)

var errNoLongerTrusted = errors.New("no longer trusted")

// bounded refuses a chain that is costly to verify. crypto/tls asks for this before the peer has shown that it has the
// key, so whoever reaches the port could have it done.
func bounded(chain []*x509.Certificate) error {
	if len(chain) > maxPeerChain {
		return fmt.Errorf("chain of %d certificates, at most %d", len(chain), maxPeerChain)
	}
	for _, c := range chain {
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && (k.N.BitLen() > maxRSABits || k.E != usualExponent) {
			return fmt.Errorf("certificate %s: RSA key of %d bits with exponent %d", c.SerialNumber.Text(16), k.N.BitLen(), k.E)
		}
	}
	return nil
}

// latestEnd returns until when at least one of the paths holds.
func latestEnd(paths [][]*x509.Certificate) (latest time.Time) {
	for _, path := range paths {
		end := path[0].NotAfter
		for _, c := range path[1:] {
			end = earlier(end, c.NotAfter)
		}
		if end.After(latest) {
			latest = end
		}
	}
	return latest
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// stands says whether what was proved still holds: for a new stream of a connection that is open already. It costs
// next to nothing unless less is trusted than the last time.
func (s *identities) stands(p *proof) error {
	if time.Now().After(p.expires) {
		return fmt.Errorf("connection of %s and %s: %w since the handshake", p.own, p.peer, errExpired)
	}
	trust := s.trust.Load()
	if p.checked.Load() == trust {
		return nil
	}
	if trust != 0 && p.failed.Load() == trust {
		return errNoLongerTrusted
	}
	if _, _, err := s.verify(p.own, p.chain); err != nil {
		p.failed.Store(trust)
		return fmt.Errorf("%w: %w", errNoLongerTrusted, err)
	}
	p.checked.Store(trust)
	return nil
}

// complete verifies the peer of a handshake and fills in what it proves.
func (s *identities) complete(p *proof, own *svid, state tls.ConnectionState) error {
	p.checked.Store(s.trust.Load()) // first: what changes meanwhile has the chain verified again
	id, expires, err := s.verify(own.id, state.PeerCertificates)
	if err != nil {
		return &peerError{err, "peer_untrusted"}
	}
	p.own, p.peer, p.chain = own.id, id, state.PeerCertificates
	p.expires = earlier(expires, own.certificate.Leaf.NotAfter)
	p.version, p.cipher = state.Version, state.CipherSuite
	return nil
}

// clientTLS authenticates as own, which the caller has acquired, and accepts nobody but destination. The checks are in
// VerifyConnection, which also runs for resumed connections (of which there are none: tickets are off, and a client
// without a session cache never resumes). p is filled in once the handshake is complete; observe, which may be nil,
// sees it before the peer is verified.
func (s *identities) clientTLS(own *svid, destination spiffeid.ID, p *proof, observe func(tls.ConnectionState)) *tls.Config {
	config := hbone.BaseTLSConfig(false)
	config.InsecureSkipVerify = true // names are not checked; VerifyConnection checks the SPIFFE ID
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own.certificate, nil }
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if observe != nil {
			observe(state)
		}
		if err := s.complete(p, own, state); err != nil {
			return err
		}
		if p.peer != destination {
			return &peerError{fmt.Errorf("peer is %s, want %s", p.peer, destination), "peer_unexpected"}
		}
		return nil
	}
	return config
}

// serverTLS authenticates as own and accepts every identity of our trust domain and of those that own federates with.
// The certificate is the one of the moment when the client asks for it. release must be called after the handshake.
func (s *identities) serverTLS(own spiffeid.ID, p *proof) (config *tls.Config, release func()) {
	var held *svid
	config = hbone.BaseTLSConfig(false)
	config.ClientAuth = tls.RequireAnyClientCert
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if held == nil {
			v, err := s.acquire(own)
			if err != nil {
				return nil, err
			}
			held = v
		}
		return held.certificate, nil
	}
	config.VerifyConnection = func(state tls.ConnectionState) error { return s.complete(p, held, state) }
	return config, func() {
		if held != nil {
			held.key.release()
		}
	}
}

// authorizeLocal is the authorisation of the wire for two workloads of this node: each side must hold a
// certificate that the other would accept, and the destination must be who the route says it is.
func (s *identities) authorizeLocal(source, expected, actual spiffeid.ID) error {
	if expected != actual {
		return fmt.Errorf("peer is %s, want %s", actual, expected)
	}
	from, err := s.usable(source)
	if err != nil {
		return err
	}
	to, err := s.usable(actual)
	if err != nil {
		return err
	}
	if _, _, err := s.verify(source, to.chain); err != nil {
		return err
	}
	_, _, err = s.verify(actual, from.chain)
	return err
}
