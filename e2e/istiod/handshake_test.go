package istiod

import (
	"crypto/tls"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// Pods with an SVID from istiod talk to those of Istio, and, while a mesh moves from one CA to the other and trusts
// the roots of both, to those with one from Culvert's CA.
func TestHandshakeBetweenSVIDsOfBothCAs(t *testing.T) {
	c := newCluster(t)
	i := startIstiod(t, c.Config(""), nil)
	culvert := startCulvert(t, c)
	theirs, ours := c.published(t, system, "istio-ca-root-cert"), c.published(t, system, kube.ConfigMapName)
	toIstiod, toCulvert := c.token(t, audience, c.agentA), c.token(t, "culvert-ca", c.agentB)

	cart := &verified(t, agent(t, toIstiod, theirs, i.options()), workload(shop, "cart"), theirs).SVID
	till := &verified(t, agent(t, toCulvert, ours, culvert), workload(shop, "till"), ours).SVID
	sidecar, _ := signed(t, i.options(), toIstiod, theirs, keys(workload(system, agentAccount).ID.String())["RSA"])

	both := slices.Concat(theirs, ours)
	tests := []struct {
		name           string
		client, server *x509svid.SVID
		roots          []byte
		refused        bool
	}{
		{"istiod to a sidecar", cart, sidecar, theirs, false},
		{"a sidecar to istiod", sidecar, cart, theirs, false},
		{"istiod to culvert", cart, till, both, false},
		{"culvert to istiod", till, cart, both, false},
		{"istiod to culvert, with istiod's root alone", cart, till, theirs, true},
		{"culvert to istiod, with culvert's root alone", till, cart, ours, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			roots := bundle(t, test.roots)
			a, b := handshake(t, side(test.client, roots, test.server.ID), side(test.server, roots, test.client.ID))
			if refused := a != nil || b != nil; refused != test.refused {
				t.Errorf("client %v, server %v; want refused %t", a, b, test.refused)
			}
		})
	}
}

// side is one end of HBONE.
func side(svid *x509svid.SVID, roots *x509bundle.Bundle, peer spiffeid.ID) *tls.Config {
	config := hbone.BaseTLSConfig(true)
	certificate := tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, c := range svid.Certificates {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	config.Certificates = []tls.Certificate{certificate}
	config.ClientAuth = tls.RequireAnyClientCert
	config.InsecureSkipVerify = true // there is no host name; VerifyPeerCertificate verifies
	config.VerifyPeerCertificate = tlsconfig.VerifyPeerCertificate(roots, tlsconfig.AuthorizeID(peer))
	return config
}

// handshake returns how it went for the client and for the server, over loopback.
func handshake(t *testing.T, client, server *tls.Config) (clients, servers error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		ended <- tls.Server(conn, server).HandshakeContext(t.Context())
	}()
	dialer := tls.Dialer{Config: client}
	conn, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		return err, <-ended
	}
	defer conn.Close()
	return nil, <-ended
}

func bundle(t *testing.T, roots []byte) *x509bundle.Bundle {
	t.Helper()
	b, err := x509bundle.Parse(domain(), roots)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
