package main

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

// noon is when the golden texts were written, so to speak.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func certificate(serial, issuer string, left time.Duration) admin.Certificate {
	return admin.Certificate{Serial: serial, Issuer: issuer, Subject: issuer, NotBefore: noon().Add(-time.Hour),
		NotAfter: noon().Add(left), SHA256: strings.Repeat("5e", 32), DER: []byte("der of " + serial)}
}

func exampleCertificates() *admin.Certificates {
	renewal, past := noon().Add(11*time.Hour+30*time.Minute), noon().Add(-time.Second)
	const issuer = "CN=Culvert intermediate"
	return &admin.Certificates{
		Answer: admin.Answer{Version: version, Time: noon()}, Node: "worker-1", TrustDomain: "cluster.local", Aliases: []string{"old.example"},
		Source: "CA culvert-ca:15012",
		Bundles: []admin.Bundle{
			{TrustDomain: "cluster.local", Roots: []admin.Certificate{certificate("1", "CN=Culvert root", 10*365*24*time.Hour)}},
			{TrustDomain: "partner.example"},
		},
		SVIDs: []admin.SVID{
			{Identity: "spiffe://cluster.local/ns/shop/sa/cart", Workloads: []string{"shop/cart-1", "shop/cart-2", "shop/cart-3", "shop/cart-4"},
				Chain: []admin.Certificate{certificate("a1b2c3", issuer, 23*time.Hour)}, NextRenewal: &renewal},
			{Identity: "spiffe://cluster.local/ns/shop/sa/till", Workloads: []string{"shop/till-1"},
				Chain: []admin.Certificate{certificate("d4e5f6", issuer, 40*time.Minute)}, NextRenewal: &past, Failing: true, LastError: "CA culvert-ca:15012: connection refused"},
			{Identity: "spiffe://cluster.local/ns/shop/sa/safe", Workloads: []string{"shop/safe-1"},
				Chain: []admin.Certificate{certificate("77", issuer, -5*time.Minute)}, Failing: true, LastError: "evil \x1b[2Jescape"},
			{Identity: "spiffe://cluster.local/ns/shop/sa/new", Workloads: []string{"shop/new-1"}},
			{Identity: "spiffe://cluster.local/ns/shop/sa/kept", Chain: []admin.Certificate{certificate("88", issuer, 50*time.Hour)}, HeldByTunnelOnly: true},
		},
	}
}

func golden(t *testing.T, got, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestCertificatesAsATable(t *testing.T) {
	var b strings.Builder
	if err := writeCertificates(&b, exampleCertificates()); err != nil {
		t.Fatal(err)
	}
	golden(t, b.String(), `
node worker-1, trust domain cluster.local (also old.example)

IDENTITY                                SERIAL  ISSUER                   LIFE LEFT         NEXT RENEWAL    SOURCE               PODS                                    STATE
spiffe://cluster.local/ns/shop/sa/cart  a1b2c3  CN=Culvert intermediate  23h0m             in 11h30m       CA culvert-ca:15012  shop/cart-1,shop/cart-2,shop/cart-3 +1  ok
spiffe://cluster.local/ns/shop/sa/till  d4e5f6  CN=Culvert intermediate  40m0s             due             CA culvert-ca:15012  shop/till-1                             renewal failing
spiffe://cluster.local/ns/shop/sa/safe  77      CN=Culvert intermediate  expired 5m0s ago  told by source  CA culvert-ca:15012  shop/safe-1                             EXPIRED
spiffe://cluster.local/ns/shop/sa/new   -       -                        -                 -               CA culvert-ca:15012  shop/new-1                              none yet
spiffe://cluster.local/ns/shop/sa/kept  88      CN=Culvert intermediate  2d2h              told by source  CA culvert-ca:15012  -                                       ok (key held by the tunnel alone)

last errors:
  spiffe://cluster.local/ns/shop/sa/till: CA culvert-ca:15012: connection refused
  spiffe://cluster.local/ns/shop/sa/safe: evil ?[2Jescape

TRUST DOMAIN     ROOT             SERIAL  LIFE LEFT  SHA-256
cluster.local    CN=Culvert root  1       10y0d      5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e
partner.example  (not known yet)
`)
}

// chainOf makes an SVID and the names by which the golden texts know what is random in it.
func chainOf(t *testing.T, by *catest.CA, id string, from, to time.Duration) []admin.Certificate {
	t.Helper()
	leaf := by.Leaf(t, &catest.Key(t).PublicKey, func(c *x509.Certificate) {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs, c.NotBefore, c.NotAfter = []*url.URL{u}, noon().Add(from), noon().Add(to)
	})
	return admin.NewChain([]*x509.Certificate{leaf})
}

func rootOf(t *testing.T, name string) *catest.CA {
	return catest.Root(t, name, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = noon().Add(-30*24*time.Hour), noon().Add(1000*24*time.Hour)
	})
}

const (
	cartID = "spiffe://cluster.local/ns/shop/sa/cart"
	tillID = "spiffe://cluster.local/ns/shop/sa/till"
)

func TestAHandshakeIsExplained(t *testing.T) {
	root, other := rootOf(t, "root"), rootOf(t, "other root")
	good := func(id string) []admin.Certificate { return chainOf(t, root, id, -time.Hour, 23*time.Hour) }
	tests := map[string]struct {
		alter func(h *admin.Handshake)
		want  string
	}{
		"accepted": {func(*admin.Handshake) {}, `
from  shop/cart-1  spiffe://cluster.local/ns/shop/sa/cart  (node worker-1)
to    shop/till-1  spiffe://cluster.local/ns/shop/sa/till  (10.0.0.2:15008)

ok  TCP                         connected to 10.0.0.2:15008 in 0.4 ms
ok  certificate of shop/cart-1  serial SERIAL-A, issued by CN=root, 23h0m of life left of 24h0m
ok  certificate of shop/cart-1  proves spiffe://cluster.local/ns/shop/sa/cart, as expected
ok  certificate of shop/cart-1  chains to CN=root (SHA-256 ROOT...)
ok  certificate of shop/till-1  serial SERIAL-B, issued by CN=root, 23h0m of life left of 24h0m
ok  certificate of shop/till-1  proves spiffe://cluster.local/ns/shop/sa/till, as expected
ok  certificate of shop/till-1  chains to CN=root (SHA-256 ROOT...)
ok  TLS                         TLS 1.3, TLS_AES_128_GCM_SHA256, X25519MLKEM768 in 2.5 ms

both sides accept each other
`},
		"nobody listens": {func(h *admin.Handshake) {
			h.Stage, h.Error = admin.StageConnect, "connect: connection refused"
		}, `
from  shop/cart-1  spiffe://cluster.local/ns/shop/sa/cart  (node worker-1)
to    shop/till-1  spiffe://cluster.local/ns/shop/sa/till  (10.0.0.2:15008)

FAILED  TCP  connect: connection refused
             -> nobody listens on 10.0.0.2:15008: is shop/till-1 enrolled? ` + "`kubectl get pod`" + ` shows the annotation ambient.istio.io/redirection=enabled then
             -> if it is, the agent of its node is gone, or was uninstalled: ` + "`culvert certs shop/till-1`" + ` asks it

failed at: connect
`},
		"another root there": {func(h *admin.Handshake) {
			h.PeerChain = chainOf(t, other, tillID, -time.Hour, 23*time.Hour)
			h.Stage, h.Error = admin.StageHandshake, "x509svid: could not verify leaf certificate: x509: certificate signed by unknown authority"
		}, `
from  shop/cart-1  spiffe://cluster.local/ns/shop/sa/cart  (node worker-1)
to    shop/till-1  spiffe://cluster.local/ns/shop/sa/till  (10.0.0.2:15008)

ok      TCP                         connected to 10.0.0.2:15008 in 0.4 ms
ok      certificate of shop/cart-1  serial SERIAL-A, issued by CN=root, 23h0m of life left of 24h0m
ok      certificate of shop/cart-1  proves spiffe://cluster.local/ns/shop/sa/cart, as expected
ok      certificate of shop/cart-1  chains to CN=root (SHA-256 ROOT...)
ok      certificate of shop/till-1  serial SERIAL-B, issued by CN=other root, 23h0m of life left of 24h0m
ok      certificate of shop/till-1  proves spiffe://cluster.local/ns/shop/sa/till, as expected
FAILED  certificate of shop/till-1  does not chain to a root that node worker-1 knows: x509: certificate signed by unknown authority
                                    -> its chain ends with the leaf (SHA-256 LEAF-B...), issued by CN=other root
                                    -> the roots of cluster.local here are CN=root (SHA-256 ROOT...)
                                    -> the nodes' roots differ: compare with ` + "`culvert certs --node`" + ` of the other one; after a rotation both roots must be known everywhere first
FAILED  TLS                         x509svid: could not verify leaf certificate: x509: certificate signed by unknown authority
                                    -> this node refused what shop/till-1 presented, for what is said above

failed at: handshake
`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := exampleHandshake(root, good(cartID), good(tillID))
			tt.alter(h)
			var b strings.Builder
			v := verified{Handshake: *h, Findings: explainHandshake(h, noon()), Accepted: h.OK()}
			if err := v.write(&b); err != nil {
				t.Fatal(err)
			}
			known := admin.NewCertificate(root.Cert)
			got := strings.NewReplacer(h.LocalChain[0].Serial, "SERIAL-A", h.PeerChain[0].Serial, "SERIAL-B", known.SHA256[:fingerprint], "ROOT",
				h.PeerChain[0].SHA256[:fingerprint], "LEAF-B").Replace(b.String())
			golden(t, got, tt.want)
		})
	}
}

func exampleHandshake(root *catest.CA, local, peer []admin.Certificate) *admin.Handshake {
	return &admin.Handshake{
		Answer: admin.Answer{Version: version, Time: noon()}, Node: "worker-1", From: "shop/cart-1", To: "shop/till-1",
		FromIdentity: cartID, ExpectedIdentity: tillID, Address: "10.0.0.2:15008", Stage: admin.StageDone,
		LocalChain: local, PeerChain: peer, TLSVersion: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768",
		Bundles:     []admin.Bundle{{TrustDomain: "cluster.local", Roots: []admin.Certificate{admin.NewCertificate(root.Cert)}}},
		Aliases:     []string{"old.example"},
		ConnectTime: 400 * time.Microsecond, HandshakeTime: 2500 * time.Microsecond,
	}
}

// TestWhatAFailureMeans looks at what is said, not at each word of it.
func TestWhatAFailureMeans(t *testing.T) {
	root := rootOf(t, "root")
	refuse := func(text string) func(*admin.Handshake) {
		return func(h *admin.Handshake) { h.Stage, h.Error = admin.StageHandshake, text }
	}
	tests := map[string]struct {
		alter func(h *admin.Handshake)
		want  []string
	}{
		"no certificate yet": {func(h *admin.Handshake) { h.Stage, h.Error = admin.StagePrepare, "no SVID" },
			[]string{"FAILED prepare no SVID", "`culvert certs shop/cart-1`"}},
		"a firewall": {func(h *admin.Handshake) { h.Stage, h.Error = admin.StageConnect, "dial: i/o timeout" },
			[]string{"FAILED TCP", "NetworkPolicy or firewall has to let port 15008 through"}},
		"no route": {func(h *admin.Handshake) { h.Stage, h.Error = admin.StageConnect, "network is unreachable" }, []string{"there is no route"}},
		"another identity": {func(h *admin.Handshake) {
			h.PeerChain = chainOf(t, root, "spiffe://cluster.local/ns/shop/sa/thief", -time.Hour, time.Hour)
			refuse("unexpected ID")(h)
		}, []string{"FAILED certificate of shop/till-1 proves spiffe://cluster.local/ns/shop/sa/thief, and not " + tillID, "another than this node believes"}},
		"an alias": {func(h *admin.Handshake) {
			h.PeerChain = chainOf(t, root, "spiffe://old.example/ns/shop/sa/till", -time.Hour, time.Hour)
		}, []string{"whose trust domain is an alias of the own", "ok certificate of shop/till-1 chains to CN=root"}},
		"a foreign trust domain": {func(h *admin.Handshake) {
			h.ExpectedIdentity = "spiffe://partner.example/ns/shop/sa/till"
			h.PeerChain = chainOf(t, root, h.ExpectedIdentity, -time.Hour, time.Hour)
			refuse("no bundle")(h)
		}, []string{"no roots of its trust domain partner.example are known", "federate with it"}},
		"expired": {func(h *admin.Handshake) {
			h.PeerChain = chainOf(t, root, tillID, -2*time.Hour, -time.Hour)
			refuse("certificate has expired")(h)
		}, []string{"FAILED certificate of shop/till-1 expired 1h0m ago", "its agent got no new one in time", "ok certificate of shop/till-1 chains to CN=root"}},
		"expired a moment ago": {func(h *admin.Handshake) {
			h.PeerChain = chainOf(t, root, tillID, -time.Hour, -2*time.Minute)
			refuse("certificate has expired")(h)
		}, []string{"expired 2m0s ago", "it is 2026-03-01T12:00:00Z by the clock of node worker-1: is that right?"}},
		"not valid yet": {func(h *admin.Handshake) {
			h.PeerChain = chainOf(t, root, tillID, 5*time.Minute, time.Hour)
			refuse("certificate is not yet valid")(h)
		}, []string{"is valid only in 5m0s", "kept by NTP"}},
		"no SPIFFE ID": {func(h *admin.Handshake) {
			h.PeerChain = chainOf(t, root, "https://example.com", -time.Hour, time.Hour)
			refuse("x")(h)
		}, []string{"has no SPIFFE ID", "not a tunnel of a mesh"}},
		"the peer knows no root":      {refuse("remote error: tls: unknown certificate authority"), []string{"node of shop/till-1 refused the certificate that shop/cart-1 presented", "its node's roots differ"}},
		"the peer's clock":            {refuse("remote error: tls: expired certificate"), []string{"compare the clocks of both nodes"}},
		"the peer wants another name": {refuse("remote error: tls: bad certificate"), []string{"trust domain aliases"}},
		"an alert of another kind":    {refuse("remote error: tls: decrypt error"), []string{"its tunnel gave up; its log has the reason"}},
		"the peer closes":             {refuse("EOF"), []string{"closed the connection without a word"}},
		"the peer says nothing":       {refuse("read: i/o timeout"), []string{"nobody goes on", "MTU"}},
		"not TLS": {func(h *admin.Handshake) {
			refuse("tls: first record does not look like a TLS handshake")(h)
			h.PeerChain = nil
		}, []string{"note certificate of shop/till-1 none was presented", "does not speak TLS"}},
		"garbage": {func(h *admin.Handshake) {
			h.PeerChain = []admin.Certificate{{DER: []byte("x")}}
			refuse("x")(h)
		}, []string{"FAILED certificate of shop/till-1 is not readable"}},
		"the own one expired": {func(h *admin.Handshake) {
			h.LocalChain = chainOf(t, root, cartID, -2*time.Hour, -time.Hour)
			refuse("remote error: tls: expired certificate")(h)
		}, []string{"FAILED certificate of shop/cart-1 expired", "see what is said above about the certificate of shop/cart-1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := exampleHandshake(root, chainOf(t, root, cartID, -time.Hour, time.Hour), chainOf(t, root, tillID, -time.Hour, time.Hour))
			tt.alter(h)
			text := textOf(explainHandshake(h, noon()))
			for _, want := range tt.want {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
		})
	}
}

func textOf(all []finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintln(&b, f.State, f.Subject, f.Text, f.Advice)
	}
	return b.String()
}

func TestClocksThatDifferAreNoted(t *testing.T) {
	root := rootOf(t, "root")
	h := exampleHandshake(root, chainOf(t, root, cartID, -time.Hour, time.Hour), chainOf(t, root, tillID, -time.Hour, time.Hour))
	for skew, want := range map[time.Duration]string{
		5 * time.Minute: "that of node worker-1 is 5m0s behind this machine's", -5 * time.Minute: "5m0s ahead of this machine's", time.Second: "",
	} {
		text := textOf(explainHandshake(h, noon().Add(skew)))
		if want == "" && strings.Contains(text, "clocks") || !strings.Contains(text, want) {
			t.Errorf("%s: %s", skew, text)
		}
	}
}
