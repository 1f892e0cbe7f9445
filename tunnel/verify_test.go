package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

// verify has a node's tunnel make a handshake and returns its answer.
func (n *node) verify(m *control.Verify) (answer *control.Verified) {
	n.t.Helper()
	n.push(&control.FromAgent{Message: &control.FromAgent_Verify{Verify: m}})
	n.eventually("answer to Verify", func() bool {
		for _, said := range n.heard() {
			if v := said.GetVerified(); v.GetNumber() == m.GetNumber() {
				answer = v
			}
		}
		return answer != nil
	})
	return answer
}

func verifyTo(number uint64, address, identity string) *control.Verify {
	a, _ := net.ResolveTCPAddr("tcp4", address)
	return &control.Verify{Number: number, Workload: 1, Address: a.IP.To4(), Port: uint32(a.Port), Identity: identity}
}

// TestVerify asks two tunnels what they think of each other.
func TestVerify(t *testing.T) {
	ca, stranger := newAuthority(t, "cluster.local"), newAuthority(t, "cluster.local")
	deep := ca.intermediate(t)
	client, server := newNode(t, ca), newNode(t, ca)
	wire(t, ca, ca, client, server, "127.77.2.1:80", "server", later())
	client.pod(3, "127.77.1.3", ca.id("bare"))
	// A pod that the client trusts, but whose roots do not know the client's.
	picky := newNode(t, stranger)
	picky.send(deep.svid(t, ca.id("picky"), later()))
	picky.pod(4, "127.77.4.1", ca.id("picky"))
	for _, n := range []*node{server, picky, client} {
		n.start()
	}
	none := verifyTo(7, "127.77.2.1:15008", ca.id("server"))
	none.Workload = 99
	bare := verifyTo(8, "127.77.2.1:15008", ca.id("server"))
	bare.Workload = 3
	tests := []struct {
		name        string
		ask         *control.Verify
		reached     control.Stage
		want        string
		local, peer int // certificates
	}{
		{"done", verifyTo(1, "127.77.2.1:15008", ca.id("server")), control.Stage_STAGE_DONE, "", 1, 1},
		{"another identity", verifyTo(2, "127.77.2.1:15008", ca.id("other")), control.Stage_STAGE_HANDSHAKE, "want " + ca.id("other"), 1, 1},
		{"our certificate refused", verifyTo(3, "127.77.4.1:15008", ca.id("picky")), control.Stage_STAGE_HANDSHAKE, "peer refused our certificate", 1, 2},
		{"nobody listens", verifyTo(4, "127.77.2.1:9", ca.id("server")), control.Stage_STAGE_CONNECT, "connection refused", 1, 0},
		{"identity is none", verifyTo(5, "127.77.2.1:15008", "nobody"), control.Stage_STAGE_PREPARE, "identity to expect", 0, 0},
		{"no address of that family", &control.Verify{Number: 6, Workload: 1, Address: make([]byte, 16), Port: 1, Identity: ca.id("server")},
			control.Stage_STAGE_PREPARE, "no address to reach", 1, 0},
		{"no workload", none, control.Stage_STAGE_PREPARE, "workload is gone", 0, 0},
		{"no SVID", bare, control.Stage_STAGE_PREPARE, "no certificate", 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := client.verify(test.ask)
			if v.GetReached() != test.reached || test.want == "" && v.GetError() != "" || !strings.Contains(v.GetError(), test.want) {
				t.Errorf("%s: %q", v.GetReached(), v.GetError())
			}
			if len(v.GetLocalChain()) != test.local || len(v.GetPeerChain()) != test.peer {
				t.Errorf("%d certificates of ours, %d of the peer, want %d and %d", len(v.GetLocalChain()), len(v.GetPeerChain()), test.local, test.peer)
			}
			if test.peer > 0 && (v.GetTlsVersion() != "TLS 1.3" || v.GetGroup() != "X25519" || !strings.HasPrefix(v.GetCipherSuite(), "TLS_") ||
				v.GetConnectNanoseconds() == 0 || v.GetHandshakeNanoseconds() == 0) {
				t.Errorf("%v", v)
			}
		})
	}
}

// TestVerifyOddPeers: servers that are no tunnel. Whatever they do, there is an answer that says what was seen.
func TestVerifyOddPeers(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	client := newNode(t, ca)
	client.send(ca.svid(t, ca.id("client"), later()))
	client.pod(1, "127.77.1.1", ca.id("client"))
	client.start()
	odd := ca.svid(t, ca.id("odd"), later()).GetSvid()
	config := func(version uint16) *tls.Config {
		key, err := x509.ParsePKCS8PrivateKey(odd.GetKey())
		must(t, err)
		return &tls.Config{MaxVersion: version, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert,
			Certificates: []tls.Certificate{{Certificate: odd.GetChain(), PrivateKey: key}}}
	}
	handshake := func(version uint16, then func(*tls.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			s := tls.Server(c, config(version))
			if s.Handshake() == nil && then != nil {
				then(s)
			}
			_ = s.Close()
		}
	}
	tests := []struct {
		name  string
		serve func(net.Conn)
		want  string
		peer  int
	}{
		{"hangs up at once", func(net.Conn) {}, "TLS handshake", 0},
		{"no TLS", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, "TLS handshake", 0},
		{"TLS 1.2", handshake(tls.VersionTLS12, nil), "TLS handshake", 0},
		{"hangs up after the handshake", handshake(tls.VersionTLS13, nil), "may not accept our certificate", 1},
		{"speaks something else", handshake(tls.VersionTLS13, func(s *tls.Conn) {
			_, _ = io.WriteString(s, "220 smtp.example ESMTP, or so it seems\r\n")
		}), "after the handshake", 1},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, err := net.Listen("tcp4", "127.77.2.9:0")
			must(t, err)
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, err := l.Accept()
				if err != nil {
					return
				}
				test.serve(c)
				_ = c.Close()
			}()
			v := client.verify(verifyTo(uint64(100+i), l.Addr().String(), ca.id("odd")))
			must(t, l.Close())
			<-done
			if v.GetReached() != control.Stage_STAGE_HANDSHAKE || !strings.Contains(v.GetError(), test.want) || len(v.GetPeerChain()) != test.peer {
				t.Errorf("%s: %q, %d certificates", v.GetReached(), v.GetError(), len(v.GetPeerChain()))
			}
		})
	}
}

// TestVerifyIsBounded: what is too much is answered at once, and all end with the agent.
func TestVerifyIsBounded(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	client := newNode(t, ca)
	client.send(ca.svid(t, ca.id("client"), later()))
	client.pod(1, "127.77.1.1", ca.id("client"))
	client.start()
	silent, err := net.Listen("tcp4", "127.77.2.9:0") // accepts in its backlog, and says nothing
	must(t, err)
	defer func() { _ = silent.Close() }()
	for i := range verifyAtOnce {
		client.push(&control.FromAgent{Message: &control.FromAgent_Verify{Verify: verifyTo(uint64(i), silent.Addr().String(), ca.id("x"))}})
	}
	v := client.verify(verifyTo(77, silent.Addr().String(), ca.id("x")))
	if v.GetReached() != control.Stage_STAGE_PREPARE || !strings.Contains(v.GetError(), "try again") {
		t.Errorf("%s: %q", v.GetReached(), v.GetError())
	}
	begin := time.Now()
	client.agent.stop()
	client.await("agent is gone")
	client.eventually("the end of all handshakes", func() bool { return len(client.tunnel.verifying) == 0 })
	t.Logf("ended %s after the agent", time.Since(begin).Round(time.Millisecond))
}

// TestVerifiedFitsIntoAMessage: a peer may present as much as TLS lets it.
func TestVerifiedFitsIntoAMessage(t *testing.T) {
	chain := []*x509.Certificate{{Raw: make([]byte, 60<<10)}, {Raw: make([]byte, 60<<10)}}
	v := &verification{answer: &control.Verified{Error: strings.Repeat("x", verifyError)}}
	v.observe(tls.ConnectionState{PeerCertificates: chain})
	if size := proto.Size(v.answer); len(v.answer.GetPeerChain()) != 1 || size > control.MaxMessage {
		t.Errorf("%d certificates, %d bytes", len(v.answer.GetPeerChain()), size)
	}
}
