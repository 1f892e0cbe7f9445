package istiod

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	pki "istio.io/istio/security/pkg/pki/util"

	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
	"github.com/culvert-mesh/culvert/agent/identity/istio"
)

const culvertName = "culvert-ca.culvert-system.svc"

// startCulvert runs `culvert ca` until the test ends, and returns how an agent is told of it.
func startCulvert(t *testing.T, c *cluster) istio.Options {
	t.Helper()
	log := &buffer{}
	ctx, cancel := context.WithCancel(context.Background())
	ended, listening := make(chan error, 1), make(chan string, 1)
	go func() {
		ended <- server.Serve(ctx, server.Options{Namespace: system, TrustDomain: domain(),
			Address: "127.0.0.1:0", StatusAddress: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(log, nil)),
		}, kube.FromInterface(c.admin), func(service, _ net.Addr) { listening <- service.String() })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of culvert ca:\n%s", log)
		}
	})
	select {
	case address := <-listening:
		return istio.Options{Address: address, ServerName: culvertName, ClusterID: clusterID}
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
		return istio.Options{}
	}
}

// mountedToken gives Istio's client a token, as its own file reader does.
type mountedToken string

// GetPlatformCredential implements security.CredFetcher.
func (m mountedToken) GetPlatformCredential() (string, error) { return string(m), nil }

// GetIdentityProvider implements security.CredFetcher.
func (mountedToken) GetIdentityProvider() string { return "" }

// Stop implements security.CredFetcher.
func (mountedToken) Stop() {}

// signed is what Istio's sidecar agent gets: it makes the key and the request as that does, and asks with Istio's
// client. It knows nothing of impersonation, so the SVID is that of whoever holds the token.
func signed(t *testing.T, at istio.Options, token string, roots []byte, key pki.CertOptions) (svid *x509svid.SVID, trusted []byte) {
	t.Helper()
	client, err := citadel.NewCitadelClient(&security.Options{CAEndpoint: at.Address, CAEndpointSAN: at.ServerName,
		ClusterID: at.ClusterID, CredFetcher: mountedToken(token)}, &citadel.TLSOptions{RootCert: write(t, t.TempDir(), "root-cert.pem", roots)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	key.PKCS8Key = true
	csr, private, err := pki.GenCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := client.CSRSign(csr, int64((24 * time.Hour).Seconds()))
	if err != nil {
		t.Fatal(err)
	}
	// Istio takes the last element for what to trust and the others for the chain.
	last := len(chain) - 1
	svid, err = x509svid.Parse([]byte(strings.Join(chain[:last], "")), private)
	if err != nil {
		t.Fatal(err)
	}
	return svid, []byte(chain[last])
}

// keys are those that Istio's agent may be told to make.
func keys(identity string) map[string]pki.CertOptions {
	return map[string]pki.CertOptions{
		"RSA":   {Host: identity, RSAKeySize: 2048},
		"ECDSA": {Host: identity, ECSigAlg: pki.EcdsaSigAlg, ECCCurve: pki.P256Curve},
	}
}

func TestIstiosClientWithCulvertsCA(t *testing.T) {
	c := newCluster(t)
	at := startCulvert(t, c)
	roots := c.published(t, system, kube.ConfigMapName)
	token := c.token(t, "culvert-ca", c.agentA)
	want := workload(system, agentAccount).ID
	for name, key := range keys(want.String()) {
		t.Run(name, func(t *testing.T) {
			svid, trusted := signed(t, at, token, roots, key)
			if svid.ID != want {
				t.Errorf("got %s, want %s", svid.ID, want)
			}
			for whence, roots := range map[string][]byte{"ConfigMap": roots, "answer": trusted} {
				if _, _, err := x509svid.Verify(svid.Certificates, bundle(t, roots)); err != nil {
					t.Errorf("with the roots of the %s: %v", whence, err)
				}
			}
			if left := time.Until(svid.Certificates[0].NotAfter); left < 23*time.Hour || left > 24*time.Hour {
				t.Errorf("valid for %s, want 24 h", left)
			}
			if svid.Certificates[0].KeyUsage&x509.KeyUsageDigitalSignature == 0 {
				t.Error("cannot sign a handshake")
			}
		})
	}
	t.Run("and Culvert's", func(t *testing.T) {
		verified(t, agent(t, token, roots, at), workload(shop, "cart"), roots)
	})
}
