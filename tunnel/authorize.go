package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// handshake is what one TLS handshake proved.
type handshake struct {
	peer    spiffeid.ID
	expires time.Time // the earlier end of the two certificates: the connection proves nothing after it
	version uint16
	cipher  uint16
}

// verify authenticates a certificate chain, the peer's or our own, against the roots as they are now.
func (s *identities) verify(chain []*x509.Certificate) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, errors.New("no certificate presented")
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("certificate identity: %w", err)
	}
	if !s.accepts(id.TrustDomain()) {
		return spiffeid.ID{}, fmt.Errorf("%s: trust domain not accepted", id)
	}
	if _, _, err := x509svid.Verify(chain, s); err != nil {
		return spiffeid.ID{}, fmt.Errorf("%s: %w", id, err)
	}
	return id, nil
}

// clientTLS authenticates as source and accepts nobody but destination. The checks are in VerifyConnection,
// which also runs for resumed connections. The handshake is filled in once it is complete.
func (s *identities) clientTLS(source, destination spiffeid.ID, done *handshake) (*tls.Config, error) {
	certificate, err := s.certificate(source)
	if err != nil {
		return nil, err
	}
	config := hbone.BaseTLSConfig(false)
	config.InsecureSkipVerify = true // names are not checked; VerifyConnection checks the SPIFFE ID
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	config.VerifyConnection = func(state tls.ConnectionState) error {
		id, err := s.verify(state.PeerCertificates)
		if err != nil {
			return err
		}
		if id != destination {
			return fmt.Errorf("peer is %s, want %s", id, destination)
		}
		*done = completed(id, certificate, state)
		return nil
	}
	return config, nil
}

// serverTLS authenticates as own and accepts every identity of our trust domain.
func (s *identities) serverTLS(own spiffeid.ID, done *handshake) (*tls.Config, error) {
	certificate, err := s.certificate(own)
	if err != nil {
		return nil, err
	}
	config := hbone.BaseTLSConfig(false)
	config.ClientAuth = tls.RequireAnyClientCert
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }
	config.VerifyConnection = func(state tls.ConnectionState) error {
		id, err := s.verify(state.PeerCertificates)
		if err != nil {
			return err
		}
		*done = completed(id, certificate, state)
		return nil
	}
	return config, nil
}

func completed(peer spiffeid.ID, own *tls.Certificate, state tls.ConnectionState) handshake {
	expires := state.PeerCertificates[0].NotAfter
	if own.Leaf.NotAfter.Before(expires) {
		expires = own.Leaf.NotAfter
	}
	return handshake{peer: peer, expires: expires, version: state.Version, cipher: state.CipherSuite}
}

// authorizeLocal is the authorisation of the wire for two workloads of this node: each side must hold a
// certificate that the other would accept, and the destination must be who the route says it is.
func (s *identities) authorizeLocal(source, expected, actual spiffeid.ID) error {
	if expected != actual {
		return fmt.Errorf("peer is %s, want %s", actual, expected)
	}
	for _, id := range []spiffeid.ID{source, actual} {
		certificate, err := s.certificate(id)
		if err != nil {
			return err
		}
		chain, err := parseChain(certificate)
		if err != nil {
			return fmt.Errorf("identity %s: %w", id, err)
		}
		if _, err := s.verify(chain); err != nil {
			return err
		}
	}
	return nil
}

func parseChain(certificate *tls.Certificate) ([]*x509.Certificate, error) {
	chain := []*x509.Certificate{certificate.Leaf}
	for _, der := range certificate.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	return chain, nil
}
