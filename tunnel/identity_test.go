package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// identitiesOf takes what an agent says.
func identitiesOf(t testing.TB, domain string, aliases []string, messages ...*control.FromAgent) *identities {
	t.Helper()
	s := newIdentities()
	must(t, s.welcome(&control.Welcome{Version: 1, TrustDomain: domain, TrustDomainAliases: aliases}))
	s.take(t, messages...)
	return s
}

func (s *identities) take(t testing.TB, messages ...*control.FromAgent) {
	t.Helper()
	for _, m := range messages {
		if v := m.GetSvid(); v != nil {
			must(t, s.setSVID(v))
		}
		if b := m.GetBundle(); b != nil {
			must(t, s.setBundle(b))
		}
	}
}

// shake makes a handshake and returns what the client and the server think of each other. own stands for whatever a
// peer may present; nil: the client's SVID.
func shake(t *testing.T, client, server *identities, from, to string, own *svid) (clientErr, serverErr error) {
	t.Helper()
	a, b := tcpPair(t)
	if own == nil {
		var err error
		own, err = client.acquire(spiffeid.RequireFromString(from))
		must(t, err)
		defer own.key.release()
	}
	config, release := server.serverTLS(spiffeid.RequireFromString(to), new(proof))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer release()
		var c *hbone.Conn
		c, serverErr = hbone.Server(context.Background(), b, config, hbone.Config{}, func(_ context.Context, r *hbone.Request) { _ = r.Refuse(503) })
		if serverErr == nil {
			<-c.Done()
		}
	}()
	clientErr = hbone.Probe(t.Context(), a, client.clientTLS(own, spiffeid.RequireFromString(to), new(proof), nil))
	<-done
	return clientErr, serverErr
}

// TestPeers: who accepts whom, both sides being as strict.
func TestPeers(t *testing.T) {
	ours, theirs := newAuthority(t, "cluster.local"), newAuthority(t, "elsewhere.test")
	legacy := &authority{domain: "old.local", root: ours.root, issuer: ours.issuer, key: ours.key} // an earlier name of ours
	imposter := &authority{domain: "elsewhere.test", root: ours.root, issuer: ours.issuer, key: ours.key}
	stranger, deep := newAuthority(t, "cluster.local"), ours.intermediate(t)
	server := ours.id("server")
	node := func(aliases []string, messages ...*control.FromAgent) *identities {
		return identitiesOf(t, "cluster.local", aliases, append([]*control.FromAgent{ours.bundle()}, messages...)...)
	}
	plain := func() *identities { return node(nil, ours.svid(t, server, later())) }
	elsewhere := func(m ...*control.FromAgent) *identities {
		return identitiesOf(t, "elsewhere.test", nil, append([]*control.FromAgent{theirs.bundle()}, m...)...)
	}
	friend := func(federates ...string) *identities {
		return elsewhere(ours.bundle(), theirs.svid(t, theirs.id("client"), later(), federates...))
	}
	present := func(m *control.FromAgent) *svid {
		v, err := parseSVID(spiffeid.RequireFromString(m.GetSvid().GetIdentity()), m.GetSvid())
		must(t, err)
		return v
	}
	tests := []struct {
		name           string
		client, server *identities
		from           string
		own            *svid
		want           string // in the error of the side that refuses
		byServer       bool
	}{
		{name: "own trust domain", client: node(nil, ours.svid(t, ours.id("client"), later())), server: plain(), from: ours.id("client")},
		{name: "intermediate", client: node(nil, deep.svid(t, ours.id("client"), later())), server: node(nil, deep.svid(t, server, later())), from: ours.id("client")},
		{name: "alias", client: node([]string{"old.local"}, legacy.svid(t, legacy.id("client"), later())),
			server: node([]string{"old.local"}, ours.svid(t, server, later())), from: legacy.id("client")},
		{name: "alias that the server does not know", client: node([]string{"old.local"}, legacy.svid(t, legacy.id("client"), later())),
			server: plain(), from: legacy.id("client"), want: "trust domain not accepted", byServer: true},
		{name: "federated both ways", client: friend("cluster.local"),
			server: node(nil, theirs.bundle(), ours.svid(t, server, later(), "elsewhere.test")), from: theirs.id("client")},
		{name: "the server's identity does not federate, another one does", client: friend("cluster.local"),
			server: node(nil, theirs.bundle(), ours.svid(t, server, later()), ours.svid(t, ours.id("other"), later(), "elsewhere.test")),
			from:   theirs.id("client"), want: "trust domain not accepted", byServer: true},
		{name: "the client's identity does not federate", client: friend(),
			server: node(nil, theirs.bundle(), ours.svid(t, server, later(), "elsewhere.test")), from: theirs.id("client"), want: "trust domain not accepted"},
		{name: "federated without roots", client: friend("cluster.local"),
			server: node(nil, ours.svid(t, server, later(), "elsewhere.test")), from: theirs.id("client"), want: "no roots of trust domain", byServer: true},
		{name: "roots forgotten", client: friend("cluster.local"),
			server: node(nil, theirs.bundle(), ours.svid(t, server, later(), "elsewhere.test"), bundleOf("elsewhere.test")),
			from:   theirs.id("client"), want: "no roots of trust domain", byServer: true},
		{name: "our root does not speak for a federated trust domain", client: friend("cluster.local"),
			server: node(nil, theirs.bundle(), ours.svid(t, server, later(), "elsewhere.test")),
			own:    present(imposter.svid(t, theirs.id("client"), later())), want: "unknown authority", byServer: true},
		{name: "another root", client: node(nil), server: plain(), own: present(stranger.svid(t, ours.id("client"), later())), want: "unknown authority", byServer: true},
		{name: "the server's root is another", client: node(nil, ours.svid(t, ours.id("client"), later())),
			server: node(nil, stranger.svid(t, server, later())), from: ours.id("client"), want: "unknown authority"},
		{name: "expired", client: node(nil), server: plain(), own: present(ours.svid(t, ours.id("client"), time.Now().Add(-time.Second))), want: "expired", byServer: true},
		{name: "begins in four minutes", client: node(nil), server: plain(),
			own: present(ours.svidFrom(t, ours.id("client"), time.Now().Add(4*time.Minute), later()))},
		{name: "begins in six minutes", client: node(nil), server: plain(),
			own: present(ours.svidFrom(t, ours.id("client"), time.Now().Add(6*time.Minute), later())), want: "not yet valid", byServer: true},
		{name: "expired and begins in the future", client: node(nil), server: plain(),
			own: present(ours.svidFrom(t, ours.id("client"), time.Now().Add(4*time.Minute), time.Now().Add(-time.Minute))), want: "expired", byServer: true},
		{name: "chain without its intermediate", client: node(nil), server: plain(),
			own:  present((&authority{domain: ours.domain, root: ours.root, issuer: deep.issuer, key: deep.key}).svid(t, ours.id("client"), later())),
			want: "unknown authority", byServer: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			clientErr, serverErr := shake(t, test.client, test.server, test.from, server, test.own)
			err := clientErr
			if test.byServer {
				err = serverErr
			}
			switch {
			case test.want == "" && (clientErr != nil || serverErr != nil):
				t.Errorf("client: %v; server: %v", clientErr, serverErr)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("client: %v; server: %v; want %q", clientErr, serverErr, test.want)
			case test.want != "" && (clientErr == nil || serverErr == nil):
				t.Errorf("client: %v; server: %v: one side did not notice", clientErr, serverErr)
			}
		})
	}
}

// TestNarrowing: only what takes trust away has open connections looked at again.
func TestNarrowing(t *testing.T) {
	a, b, foreign := newAuthority(t, "cluster.local"), newAuthority(t, "cluster.local"), newAuthority(t, "elsewhere.test")
	s := identitiesOf(t, "cluster.local", []string{"old.local"}, a.bundle(), a.svid(t, a.id("x"), later()))
	welcome := func(aliases ...string) func() {
		return func() {
			must(t, s.welcome(&control.Welcome{TrustDomain: "cluster.local", TrustDomainAliases: aliases}))
		}
	}
	take := func(m *control.FromAgent) func() { return func() { s.take(t, m) } }
	steps := []struct {
		name   string
		do     func()
		narrow bool
	}{
		{"the same roots", take(a.bundle()), false},
		{"one root more", take(bundleOf("cluster.local", a, b)), false},
		{"another SVID", take(a.svid(t, a.id("x"), later(), "elsewhere.test")), false},
		{"roots of a trust domain that was unknown", take(foreign.bundle()), false},
		{"the same welcome", welcome("old.local"), false},
		{"one alias more", welcome("old.local", "older.local"), false},
		{"a root less", take(b.bundle()), true},
		{"an alias gets roots of its own", take(bundleOf("old.local", a)), true},
		{"an alias shares ours again", take(bundleOf("old.local")), true},
		{"an alias less", welcome("old.local"), true},
		{"no federation", take(a.svid(t, a.id("x"), later())), true},
		{"roots forgotten", take(bundleOf("elsewhere.test")), true},
		{"forgotten twice", take(bundleOf("elsewhere.test")), false},
	}
	for _, step := range steps {
		before, narrowed := s.trust.Load(), s.narrowed()
		step.do()
		select {
		case <-narrowed:
			if !step.narrow || s.trust.Load() == before {
				t.Errorf("%s: narrowed", step.name)
			}
		default:
			if step.narrow || s.trust.Load() != before {
				t.Errorf("%s: not narrowed", step.name)
			}
		}
	}
}

// TestOwnRootsStay: an agent that does not know them yet takes none away.
func TestOwnRootsStay(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	s := identitiesOf(t, "cluster.local", nil)
	must(t, s.setBundle(bundleOf("cluster.local").GetBundle())) // there are none: nothing to say
	must(t, s.setBundle(ca.bundle().GetBundle()))
	trust := s.trust.Load()
	if err := s.setBundle(bundleOf("cluster.local").GetBundle()); err == nil {
		t.Error("own roots taken away")
	}
	b, err := s.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("cluster.local"))
	if err != nil || len(b.X509Authorities()) != 1 || s.trust.Load() != trust {
		t.Errorf("%v, %v", b, err)
	}
}

// TestResumption: no handshake is resumed, whatever the other side would like: a peer is verified each time.
func TestResumption(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	client, server := spiffeid.RequireFromString(ca.id("client")), spiffeid.RequireFromString(ca.id("server"))
	s := identitiesOf(t, "cluster.local", nil, ca.bundle(), ca.svid(t, ca.id("client"), later()), ca.svid(t, ca.id("server"), later()))
	own, err := s.acquire(client)
	must(t, err)
	defer own.key.release()

	// exchange makes a handshake and reads, which is when a client gets its tickets.
	exchange := func(clientConfig, serverConfig *tls.Config) (resumed bool, serverErr error) {
		a, b := tcpPair(t)
		done := make(chan error, 1)
		go func() {
			c := tls.Server(b, serverConfig)
			defer func() { _ = c.Close() }()
			err := c.Handshake()
			if err == nil {
				_, err = c.Write([]byte("x"))
			}
			done <- err
		}()
		c := tls.Client(a, clientConfig)
		_, _ = c.Read(make([]byte, 1))
		resumed = c.ConnectionState().DidResume
		_ = c.Close()
		return resumed, <-done
	}
	t.Run("a client that keeps sessions", func(t *testing.T) {
		eager := s.clientTLS(own, server, new(proof), nil)
		eager.ClientSessionCache, eager.SessionTicketsDisabled = tls.NewLRUClientSessionCache(8), false
		ours := func() *tls.Config { c, _ := s.serverTLS(server, new(proof)); return c }
		for range 2 {
			if resumed, err := exchange(eager, ours()); resumed || err != nil {
				t.Fatalf("resumed %t, %v", resumed, err)
			}
		}
	})
	t.Run("a server that gives tickets", func(t *testing.T) {
		generous, _ := s.serverTLS(server, new(proof))
		generous.SessionTicketsDisabled = false
		looked := 0
		for i := range 2 {
			p := new(proof)
			resumed, err := exchange(s.clientTLS(own, server, p, func(tls.ConnectionState) { looked++ }), generous)
			if resumed || err != nil || looked != i+1 || p.peer != server {
				t.Fatalf("resumed %t, %v, looked %d times, peer %s", resumed, err, looked, p.peer)
			}
		}
	})
	t.Run("trust that has ended meanwhile", func(t *testing.T) {
		other := newAuthority(t, "cluster.local")
		eager := s.clientTLS(own, server, new(proof), nil)
		eager.VerifyConnection = nil
		eager.ClientSessionCache, eager.SessionTicketsDisabled = tls.NewLRUClientSessionCache(8), false
		ours, _ := s.serverTLS(server, new(proof))
		if _, err := exchange(eager, ours); err != nil {
			t.Fatal(err)
		}
		s.take(t, other.bundle())
		if _, err := exchange(eager, ours); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("got %v", err)
		}
	})
}

// TestProofEndsWithItsEarliestCertificate: an intermediate may end before the leaf below it.
func TestProofEndsWithItsEarliestCertificate(t *testing.T) {
	root := newAuthority(t, "cluster.local")
	soon := time.Now().Add(10 * time.Minute).Truncate(time.Second)
	short := newAuthorityUntil(t, "cluster.local", root, soon)
	s := identitiesOf(t, "cluster.local", nil, root.bundle(), short.svid(t, root.id("peer"), later()), root.svid(t, root.id("own"), later()))
	peer, err := s.usable(spiffeid.RequireFromString(root.id("peer")))
	must(t, err)
	own, err := s.usable(spiffeid.RequireFromString(root.id("own")))
	must(t, err)
	var p proof
	must(t, s.complete(&p, own, tls.ConnectionState{PeerCertificates: peer.chain}))
	if !p.expires.Equal(soon) {
		t.Errorf("expires %s, want %s", p.expires, soon)
	}
	must(t, s.stands(&p))
	p.expires = time.Now().Add(-time.Second)
	if err := s.stands(&p); !errors.Is(err, errExpired) {
		t.Errorf("got %v", err)
	}
}
