package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

const connectRefused = "CONNECT refused"

// inbound serves one HBONE connection to a pod of this node.
func (t *tunnel) inbound(w *workload, tcp *net.TCPConn) {
	s := w.spec.Load()
	peer, local := addrPort(tcp.RemoteAddr()), addrPort(tcp.LocalAddr())
	in := &inboundConn{tunnel: t, workload: w, peer: peer, local: local.Addr(), ready: make(chan struct{})}
	conn, err := t.serverHandshake(w, s, tcp, in)
	<-w.handshakes
	if err != nil {
		if w.noise.log(t.log, slog.LevelWarn, "inbound HBONE connection refused",
			"workload", s.name, "source.addr", peer.String(), "error", err) {
			in.record(s, peer, "").tell(hbone.Stats{}, telemetry.FlagsFailed, err.Error())
		}
		return
	}
	select {
	case w.peers <- struct{}{}:
		defer func() { <-w.peers }()
	default:
		_ = conn.Close()
		w.noise.log(t.log, slog.LevelWarn, "inbound HBONE connection refused: too many at once", "workload", s.name, "source.addr", peer.String())
		return
	}
	close(in.ready)
	logHandshake(t.log, "inbound", in.proof.peer.String(), s.identity.String(), &in.proof, tcp.RemoteAddr())
	if t.awaitEnd(w, conn, &in.proof) {
		// What is open goes on; for new streams the peer must prove again who it is.
		_ = conn.Shutdown(t.hard)
	}
	_ = conn.Close()
}

// awaitEnd waits until a connection is to take no more streams, and reports whether it is still there.
func (t *tunnel) awaitEnd(w *workload, conn *hbone.Conn, p *proof) bool {
	expired := time.NewTimer(time.Until(p.expires))
	defer expired.Stop()
	for {
		narrowed := t.ids.narrowed()
		if err := t.ids.stands(p); err != nil {
			w.noise.log(t.log, slog.LevelInfo, "inbound HBONE connection takes no more streams", "workload", w.spec.Load().name,
				"source.identity", p.peer.String(), "reason", err)
			return true
		}
		select {
		case <-conn.Done():
			return false
		case <-t.soft.Done():
			return true
		case <-w.ended:
			return true
		case <-expired.C:
			return true
		case <-narrowed:
		}
	}
}

func (t *tunnel) serverHandshake(w *workload, s *spec, tcp *net.TCPConn, in *inboundConn) (*hbone.Conn, error) {
	if !slices.Contains(s.addresses, in.local) {
		reset(tcp)
		return nil, errors.New("local address " + in.local.String() + " is not the workload's")
	}
	t.ids.await(t.soft, s.identity)
	if _, err := t.ids.usable(s.identity); err != nil {
		reset(tcp)
		t.handshake(directionInbound, time.Time{}, err)
		t.logUnusable(s, err)
		return nil, err
	}
	config, release := t.ids.serverTLS(s.identity, &in.proof)
	defer release()
	begin := time.Now()
	conn, err := hbone.Server(t.hard, tcp, config, hbone.Config{Budget: t.budget, Logger: t.log, Stalls: &t.Metrics.WindowStalls}, in.serve)
	t.handshake(directionInbound, begin, err)
	return conn, err
}

// inboundConn is one authenticated HBONE connection.
type inboundConn struct {
	tunnel   *tunnel
	workload *workload
	peer     netip.AddrPort
	local    netip.Addr
	proof    proof
	ready    chan struct{} // closed once proof may be read
}

// serve answers one CONNECT request.
func (c *inboundConn) serve(ctx context.Context, request *hbone.Request) {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return
	}
	t, s := c.tunnel, c.workload.spec.Load()
	r := c.record(s, forwardedFor(request.Forwarded, c.peer.Addr()), c.proof.peer.String())
	r.carried = carriedMTLS
	if err := t.ids.stands(&c.proof); err != nil {
		_ = request.Decline()
		c.workload.noise.log(t.log, slog.LevelWarn, "CONNECT declined", "reason", err, "authority", clip(request.Authority),
			"source.identity", r.source.identity, "source.addr", c.peer.String(), "destination.workload", s.name)
		return
	}
	port, status, reason := c.admit(s, request, r)
	if status != http.StatusOK {
		_ = request.Refuse(status)
		flags := telemetry.FlagsFailed
		if status == http.StatusUnauthorized {
			flags = telemetry.FlagsDenied
		}
		r.turnedAway(slog.LevelWarn, connectRefused, flags, reason, slog.Int("status", status), slog.String("authority", clip(request.Authority)))
		return
	}
	deliverCtx, cancel := context.WithTimeout(ctx, connectTimeout)
	app, release, err := t.deliver(deliverCtx, c.workload, c.local, port, r.source.address)
	cancel()
	if err != nil {
		_ = request.Refuse(http.StatusServiceUnavailable)
		r.turnedAway(slog.LevelWarn, connectRefused, telemetry.FlagsFailed, "application cannot be reached: "+err.Error(),
			slog.Int("status", http.StatusServiceUnavailable))
		return
	}
	defer release()
	r.open(func() hbone.Stats { return fromClient(request.Stats()) })
	stats, err := request.Accept(app)
	r.complete(fromClient(stats), err)
}

// fromClient counts from the client's side, as a record does: what the application sent is what the tunnel sends.
func fromClient(s hbone.Stats) hbone.Stats { return hbone.Stats{Sent: s.Received, Received: s.Sent} }

// record begins the record of what source wants.
func (c *inboundConn) record(s *spec, source netip.AddrPort, identity string) *record {
	r := &record{
		tunnel: c.tunnel, workload: c.workload, direction: directionInbound, start: time.Now(),
		source: party{identity: identity, address: source}, destination: s.party(),
	}
	r.destination.address = netip.AddrPortFrom(c.local, hbonePort)
	return r
}

// admit decides on a request.
func (c *inboundConn) admit(s *spec, request *hbone.Request, r *record) (port uint16, status int, reason string) {
	authority, err := netip.ParseAddrPort(request.Authority)
	if err != nil || authority.Addr().Unmap() != c.local {
		return 0, http.StatusBadRequest, "authority is not ip:port of this workload"
	}
	port = authority.Port()
	r.destination.address = netip.AddrPortFrom(c.local, port)
	if port == 0 || port == hbonePort {
		return 0, http.StatusServiceUnavailable, "illegal port"
	}
	mode := s.forPort(port)
	r.policy, r.mode = mode.policy, mode.name()
	if mode.mode == control.Mode_MODE_DISABLE {
		return 0, http.StatusUnauthorized, "port does not take mTLS: DISABLE"
	}
	return port, http.StatusOK, ""
}

// forwardedFor is the client's address: always that of the connection's peer. The header is the peer's
// word and gives no more than the port, if it agrees on the address.
func forwardedFor(header string, peer netip.Addr) netip.AddrPort {
	for field := range strings.SplitSeq(header, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(field), "=")
		if !ok || !strings.EqualFold(name, "for") {
			continue
		}
		claimed, err := netip.ParseAddrPort(strings.Trim(value, `"`))
		if err == nil && claimed.Addr().Unmap() == peer {
			return netip.AddrPortFrom(peer, claimed.Port())
		}
	}
	return netip.AddrPortFrom(peer, 0)
}
