package istiod

import (
	"crypto/x509"
	"slices"
	"testing"

	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

// cacerts are the files of a CA below root, as an operator gives them to istiod.
func cacerts(t *testing.T, root, signs *catest.CA, between ...*catest.CA) map[string][]byte {
	t.Helper()
	return map[string][]byte{"root-cert.pem": catest.CertPEM(root), "ca-cert.pem": catest.CertPEM(signs), "ca-key.pem": signs.KeyPEM(t),
		"cert-chain.pem": catest.CertPEM(slices.Concat([]*catest.CA{signs}, between)...)}
}

// An operator's own CA: two intermediates below a root that istiod does not have the key of, then another of them.
func TestIstiodBelowAnOperatorsRoot(t *testing.T) {
	root := catest.Root(t, "root")
	middle := root.Intermediate(t, "middle")
	first, second := middle.Intermediate(t, "first"), root.Intermediate(t, "second")

	c := newCluster(t)
	i := startIstiod(t, c.Config(""), cacerts(t, root, first, middle))
	roots := c.published(t, system, "istio-ca-root-cert")
	client := agent(t, c.token(t, audience, c.agentA), roots, i.options())

	svid := verified(t, client, workload(shop, "cart"), roots)
	above := []*x509.Certificate{first.Cert, middle.Cert}
	if !slices.EqualFunc(svid.Certificates[1:], above, (*x509.Certificate).Equal) {
		t.Errorf("%d certificates above the leaf, want the two intermediates without the root", len(svid.Certificates)-1)
	}

	i.plug(cacerts(t, root, second))
	eventually(t, "SVIDs come from the other intermediate", func() bool {
		svid, err := client.Issue(t.Context(), workload(shop, "cart"))
		return err == nil && svid.Certificates[1].Equal(second.Cert)
	})
}
