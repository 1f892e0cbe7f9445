package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

func later() time.Time { return time.Now().Add(time.Hour) }

// TestWelcomeWithDescriptors: those that an agent of another version sends along are closed, and the tunnel works.
func TestWelcomeWithDescriptors(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	n := newNode(t, ca)
	here, there, err := os.Pipe()
	must(t, err)
	defer func() { _ = here.Close() }()
	n.files[0] = []*os.File{there}
	n.start()
	must(t, there.Close())
	must(t, here.SetReadDeadline(time.Now().Add(5*time.Second)))
	if _, err := here.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the other end to be closed everywhere", err)
	}
}

// TestCarry runs one connection through each kind of route, and through mTLS between two tunnels with what
// may be wrong about it.
func TestCarry(t *testing.T) {
	ca, foreign := newAuthority(t, "cluster.local"), newAuthority(t, "elsewhere.test")
	disable := func(app string) *control.PortMode {
		return &control.PortMode{Port: uint32(portOf(app)), Mode: control.Mode_MODE_DISABLE, Policy: "default/off"}
	}
	tests := []struct {
		name    string
		prepare func(t *testing.T, client, server *node, app string) (outbound string)
		ok      bool
		client  string // in the client's log
		server  string // in the server's log
	}{
		{"refuse", func(t *testing.T, c, s *node, app string) string {
			out := c.pod(1, "127.77.1.1", ca.id("client"))
			c.destination(out)
			return out
		}, false, "connection refused", ""},
		{"direct", func(t *testing.T, c, s *node, app string) string {
			out := c.pod(1, "127.77.1.1", ca.id("client"))
			c.destination(out, endpointTo(app, control.Action_ACTION_DIRECT, "", 0))
			return out
		}, true, "carried=plaintext", ""},
		{"mtls", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, app, "server", later())
		}, true, "TLS 1.3", "source.identity=" + ca.id("client")},
		{"wrong identity", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, app, "other", later())
		}, false, "want " + ca.id("other"), ""},
		{"foreign trust domain", func(t *testing.T, c, s *node, app string) string {
			out := wire(t, foreign, ca, c, s, app, "server", later())
			c.send(ca.bundle())
			c.messages[0].GetWelcome().TrustDomainAliases = []string{ca.domain}
			return out
		}, false, "connection complete", "trust domain not accepted"},
		{"expired", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, app, "server", time.Now().Add(-time.Second))
		}, false, "certificate expired", ""},
		{"disable", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, app, "server", later(), disable(app))
		}, false, "401", "default/off"},
		{"application refuses", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, "127.77.2.1:9", "server", later())
		}, false, "503", "application cannot be reached"},
		{"tunnel's own port", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, "127.77.2.1:15008", "server", later())
		}, false, "503", "illegal port"},
		{"same node", func(t *testing.T, c, s *node, app string) string {
			return same(t, ca, c, app, "server", later())
		}, true, "carried=same-node", ""},
		{"same node, ciphertext everywhere", func(t *testing.T, c, s *node, app string) string {
			c.sameNode = SameNodeMTLS
			return same(t, ca, c, app, "server", later())
		}, true, "carried=mtls", ""},
		{"same node, wrong identity", func(t *testing.T, c, s *node, app string) string {
			return same(t, ca, c, app, "other", later())
		}, false, "want " + ca.id("other"), ""},
		{"same node, expired", func(t *testing.T, c, s *node, app string) string {
			return same(t, ca, c, app, "server", time.Now().Add(-time.Second))
		}, false, "certificate expired", ""},
		{"same node, disable", func(t *testing.T, c, s *node, app string) string {
			return same(t, ca, c, app, "server", later(), disable(app))
		}, false, "does not take mTLS", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			app := application(t, "127.77.2.1")
			client, server := newNode(t, ca), newNode(t, ca)
			if strings.HasPrefix(test.name, "foreign") {
				client = newNode(t, foreign)
			}
			out := test.prepare(t, client, server, app)
			server.start()
			client.start()
			if test.ok {
				wantEcho(t, out)
			} else {
				wantReset(t, out)
			}
			client.await(test.client)
			server.await(test.server)
		})
	}
}

// wire makes a client pod and a server pod on two nodes, and a route between them.
func wire(t *testing.T, clientCA, serverCA *authority, c, s *node, app, expect string, clientExpires time.Time, modes ...*control.PortMode) string {
	c.send(clientCA.svid(t, clientCA.id("client"), clientExpires))
	out := c.pod(1, "127.77.1.1", clientCA.id("client"))
	c.destination(out, endpointTo(app, control.Action_ACTION_HBONE, serverCA.id(expect), 0))
	s.send(serverCA.svid(t, serverCA.id("server"), later()))
	s.pod(2, "127.77.2.1", serverCA.id("server"), modes...)
	return out
}

func same(t *testing.T, ca *authority, n *node, app, expect string, serverExpires time.Time, modes ...*control.PortMode) string {
	n.send(ca.svid(t, ca.id("client"), later()), ca.svid(t, ca.id("server"), serverExpires))
	out := n.pod(1, "127.77.1.1", ca.id("client"))
	n.pod(2, "127.77.2.1", ca.id("server"), modes...)
	n.destination(out, endpointTo(app, control.Action_ACTION_HBONE, ca.id(expect), 2))
	return out
}

func portOf(address string) uint16 {
	a, _ := net.ResolveTCPAddr("tcp", address)
	return uint16(a.Port)
}

// TestAgentAway: open connections go on and new ones succeed while there is no agent; the agent that comes
// back finds everything as it was, and what it does not announce is dropped.
func TestAgentAway(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	client, server := newNode(t, ca), newNode(t, ca)
	out := wire(t, ca, ca, client, server, app, "server", later())
	server.start()
	client.start()
	wantEcho(t, out)

	c, err := net.Dial("tcp4", out)
	must(t, err)
	defer func() { _ = c.Close() }()
	pingPong(t, c)
	client.agent.stop()
	server.agent.stop()
	client.await("agent is gone")
	pingPong(t, c)
	wantEcho(t, out)

	client.messages = client.messages[:len(client.messages)-1] // the pod has gone meanwhile
	client.agent = client.startAgent()
	server.agent = server.startAgent()
	client.await("workload dropped")
	pingPong(t, c)
	if n := strings.Count(client.logs.String(), "TLS handshake complete"); n != 1 {
		t.Errorf("%d handshakes, want 1", n)
	}
}

func pingPong(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, err := io.WriteString(c, "ping")
	must(t, err)
	b := make([]byte, 4)
	_, err = io.ReadFull(c, b)
	must(t, err)
}

// TestPoolSharing: connections of one identity share a TLS connection, those of two never do.
func TestPoolSharing(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	client, server := newNode(t, ca), newNode(t, ca)
	first := wire(t, ca, ca, client, server, app, "server", later())
	client.send(ca.svid(t, ca.id("second"), later()))
	second := client.pod(3, "127.77.1.3", ca.id("second"))
	client.destination(second, endpointTo(app, control.Action_ACTION_HBONE, ca.id("server"), 0))
	server.start()
	client.start()
	for range 5 {
		wantEcho(t, first)
	}
	wantEcho(t, second)
	if n := strings.Count(client.logs.String(), "TLS handshake complete"); n != 2 {
		t.Errorf("%d handshakes, want 2", n)
	}
}

func TestNoSockets(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	client := newNode(t, ca)
	client.stingy = true
	out := client.pod(1, "127.77.1.1", ca.id("client"))
	client.destination(out, endpointTo(app, control.Action_ACTION_DIRECT, "", 0))
	client.start()
	wantReset(t, out)
	client.await(errReserveWait.Error())
}

// TestShutdown: Run ends while a connection is open through mTLS, and the connection with it.
func TestShutdown(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	for _, first := range []string{"client", "server"} {
		t.Run(first+" first", func(t *testing.T) {
			client, server := newNode(t, ca), newNode(t, ca)
			out := wire(t, ca, ca, client, server, app, "server", later())
			server.start()
			client.start()
			c, err := net.Dial("tcp4", out)
			must(t, err)
			defer func() { _ = c.Close() }()
			pingPong(t, c)
			stopped := client
			if first == "server" {
				stopped = server
			}
			must(t, stopped.stop())
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("got %v, want a reset", err)
			}
		})
	}
}

func TestRefusedIsLogged(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	n := newNode(t, ca)
	n.pod(1, "127.77.1.1", ca.id("client"))
	n.send(&control.FromAgent{Message: &control.FromAgent_Refused{Refused: &control.Refused{
		Workload: 1, Source: []byte{10, 0, 0, 9}, SourcePort: 4711, Destination: []byte{10, 0, 0, 1}, DestinationPort: 80,
		Policy: "default/default-strict", Suppressed: 3}}})
	n.start()
	n.await(`msg="plaintext refused: workload is STRICT" source=10.0.0.9:4711 destination=10.0.0.1:80 ` +
		`workload=default/pod-1 policy=default/default-strict suppressed=3`)
}

// TestRotation: new connections use the new certificate once the old one has expired; open ones go on.
func TestRotation(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	client, server := newNode(t, ca), newNode(t, ca)
	out := wire(t, ca, ca, client, server, app, "server", time.Now().Add(2*time.Second))
	server.start()
	client.start()
	c, err := net.Dial("tcp4", out)
	must(t, err)
	defer func() { _ = c.Close() }()
	pingPong(t, c)
	time.Sleep(2500 * time.Millisecond) // certificates end on whole seconds
	wantReset(t, out)
	client.agent.stop()
	client.await("agent is gone")
	client.send(ca.svid(t, ca.id("client"), later()))
	client.agent = client.startAgent()
	for range 100 {
		if _, err = call(out, "hello"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	must(t, err)
	pingPong(t, c)
	if n := strings.Count(client.logs.String(), "TLS handshake complete"); n != 2 {
		t.Errorf("%d handshakes, want 2", n)
	}
}
