package istiod

import (
	"bytes"
	"crypto/ecdsa"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/istio"
)

// options are how an agent is told of an istiod.
func (i *istiod) options() istio.Options {
	return istio.Options{Address: i.secure, ServerName: serverName, ClusterID: clusterID}
}

// verified is an SVID that a peer with these roots accepts.
func verified(t *testing.T, c *istio.Client, w identity.Workload, roots []byte) *identity.SVID {
	t.Helper()
	svid, err := c.Issue(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify(svid.Certificates, bundle(t, roots))
	if err != nil || id != w.ID {
		t.Fatalf("a peer sees %s, %v; want %s", id, err, w.ID)
	}
	return svid
}

func TestSVIDsFromIstiod(t *testing.T) {
	c := newCluster(t)
	i := startIstiod(t, c.Config(""), nil)
	roots := c.published(t, system, "istio-ca-root-cert")
	a, b := c.token(t, audience, c.agentA), c.token(t, audience, c.agentB)

	log := &buffer{}
	o := i.options()
	o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	verified(t, agent(t, a, roots, o), workload(shop, "cart"), roots)
	verified(t, agent(t, b, roots, i.options()), workload(shop, "till"), roots)
	eventually(t, "the client knows that istiod streams no roots", func() bool {
		return strings.Contains(log.String(), "the CA streams no roots")
	})

	const impersonation = "code = Unauthenticated desc = request impersonation authentication failure"
	const token = "code = Unauthenticated desc = request authenticate failure"
	tests := []struct {
		name, token, account string
		alter                func(*istio.Options)
		want                 []string
	}{
		{"pod of another node", a, "till", nil, []string{impersonation, "does a pod with this identity run on this node?"}},
		{"no pod", a, "default", nil, []string{impersonation, "does a pod with this identity run on this node?"}},
		{"account that is not trusted", c.token(t, audience, c.stranger), "cart", nil, []string{impersonation, "CA_TRUSTED_NODE_ACCOUNTS"}},
		{"token for another audience", c.token(t, "culvert-ca", c.agentA), "cart", nil, []string{token, "for the CA's audience"}},
		{"no token", "x", "cart", nil, []string{token, "is the token in "}},
		{"cluster that istiod does not know", a, "cart", func(o *istio.Options) { o.ClusterID = "west" }, []string{token, `of a cluster that the CA knows as "west"`}},
		{"no cluster", a, "cart", func(o *istio.Options) { o.ClusterID = "" }, []string{impersonation, "istiod wants a cluster id and none is set"}},
		{"life beyond istiod's limit", a, "cart", func(o *istio.Options) { o.Life = 366 * 24 * time.Hour }, []string{"code = InvalidArgument", "TTL"}},
		{"name that istiod does not have", a, "cart", func(o *istio.Options) { o.ServerName = "culvert-ca.culvert-system.svc" },
			[]string{"the CA is expected to be culvert-ca.culvert-system.svc"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := i.options()
			if test.alter != nil {
				test.alter(&o)
			}
			_, err := agent(t, test.token, roots, o).Issue(t.Context(), workload(shop, test.account))
			wants(t, err, test.want...)
		})
	}

	t.Run("pod that came later", func(t *testing.T) {
		client := agent(t, a, roots, i.options())
		c.pod(t, shop, "till-2", "till", "node-a")
		eventually(t, "istiod knows the pod", func() bool { _, err := client.Issue(t.Context(), workload(shop, "till")); return err == nil })
	})
	if strings.Contains(i.log.String(), a) {
		t.Error("istiod's log has our token")
	}
}

func TestRotationWithIstiod(t *testing.T) {
	c := newCluster(t)
	i := startIstiod(t, c.Config(""), nil)
	roots := c.published(t, system, "istio-ca-root-cert")
	const life = 6 * time.Second
	o := i.options()
	o.Life = life
	client := agent(t, c.token(t, audience, c.agentA), roots, o)

	before := verified(t, client, workload(shop, "cart"), roots)
	if left := time.Until(before.Certificates[0].NotAfter); left > life {
		t.Fatalf("asked for a life of %s, got one of %s", life, left)
	}
	for range 3 {
		time.Sleep(life / 2)
		next := verified(t, client, workload(shop, "cart"), roots)
		if !next.Certificates[0].NotAfter.After(before.Certificates[0].NotAfter) {
			t.Errorf("renewed, but expires at %s as before", next.Certificates[0].NotAfter)
		}
		if next.PrivateKey.(*ecdsa.PrivateKey).Equal(before.PrivateKey) {
			t.Error("renewed with the same key")
		}
		before = next
	}
}

func TestIstiodRestarted(t *testing.T) {
	c := newCluster(t)
	i := startIstiod(t, c.Config(""), nil)
	roots := c.published(t, system, "istio-ca-root-cert")
	client := agent(t, c.token(t, audience, c.agentA), roots, i.options())
	before := verified(t, client, workload(shop, "cart"), roots)

	i.stop()
	_, err := client.Issue(t.Context(), workload(shop, "cart"))
	wants(t, err, "code = Unavailable")
	i.start()

	var after *identity.SVID
	eventually(t, "the client is back", func() bool {
		after, err = client.Issue(t.Context(), workload(shop, "cart"))
		return err == nil
	})
	if again := c.published(t, system, "istio-ca-root-cert"); !bytes.Equal(again, roots) {
		t.Error("istiod has another root after a restart")
	}
	// Those who have the one talk to those who have the other.
	for _, svid := range []*identity.SVID{before, after} {
		if _, _, err := x509svid.Verify(svid.Certificates, client.Bundles()[0]); err != nil {
			t.Error(err)
		}
	}
}
