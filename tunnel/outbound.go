package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

// streamTimeout bounds finding a connection, making it, and the peer's own connect to the application.
const streamTimeout = 25 * time.Second

// outbound carries one connection of a pod of this node to where it wanted to go. Whatever cannot be
// carried as the route says is reset: there is no second best.
func (t *tunnel) outbound(w *workload, app *net.TCPConn) {
	defer func() { <-w.relays }()
	client := addrPort(app.RemoteAddr())
	s := w.spec.Load()
	r := &record{tunnel: t, workload: w, direction: directionOutbound, start: time.Now(), source: s.party()}
	r.source.address = client
	destination, err := t.Redirection.OriginalDestination(app, s.addresses)
	if err != nil {
		reset(app)
		t.Metrics.DestinationMissing.Add(1)
		r.turnedAway(slog.LevelWarn, "connection reset: original destination unknown", telemetry.FlagsNoRoute,
			"original destination unknown", slog.Any("error", err))
		return
	}
	destination = netip.AddrPortFrom(destination.Addr().Unmap(), destination.Port())
	r.destination.address = destination
	route, err := w.routes.lookup(t.hard, destination)
	if err != nil {
		reset(app)
		r.turnedAway(slog.LevelWarn, "connection reset: no route", telemetry.FlagsNoRoute, err.Error())
		return
	}
	e := route.pick()
	r.policy = e.reason
	r.destination.workload, r.destination.naming, r.destination.service = e.workload, e.naming, route.service
	if e.action == control.Action_ACTION_REFUSE {
		reset(app)
		flags := telemetry.FlagsDenied
		if len(route.endpoints) == 0 {
			flags = telemetry.FlagsNoEndpoints
		}
		r.refused(flags, e.reason)
		return
	}
	r.destination.address = e.address
	stats, err := t.carry(w, s, app, e, r)
	r.complete(stats, err)
}

// carry relays app to an endpoint, and closes app in any case.
func (t *tunnel) carry(w *workload, s *spec, app *net.TCPConn, e endpoint, r *record) (hbone.Stats, error) {
	if e.action == control.Action_ACTION_DIRECT {
		r.carried = carriedPlaintext
		return t.carryDirect(w, s, app, e, r)
	}
	r.destination.identity = e.identity.String()
	t.ids.await(t.hard, s.identity)
	if e.local != 0 && t.SameNode == SameNodeSplice {
		r.carried = carriedSameNode
		return t.carrySameNode(s, app, e, r)
	}
	r.carried = carriedMTLS
	return t.carryHBONE(w, s, app, e, r)
}

func (t *tunnel) carryDirect(w *workload, s *spec, app *net.TCPConn, e endpoint, r *record) (hbone.Stats, error) {
	peer, err := t.dialFrom(t.hard, w, s, r.source.address.Addr(), e.address)
	if err != nil {
		reset(app)
		return hbone.Stats{}, err
	}
	r.open(spliced(app, peer))
	return splice(t.hard, app, peer)
}

func (t *tunnel) carryHBONE(w *workload, s *spec, app *net.TCPConn, e endpoint, r *record) (hbone.Stats, error) {
	stream, release, err := t.stream(w, s, e, r.source.address)
	if err != nil {
		reset(app)
		return hbone.Stats{}, err
	}
	defer release()
	r.open(stream.Stats)
	return stream.Relay(app)
}

func (t *tunnel) stream(w *workload, s *spec, e endpoint, client netip.AddrPort) (*hbone.Stream, func(), error) {
	// Also for a connection of the pool: it was made with a certificate that may have expired since.
	if _, err := t.ids.usable(s.identity); err != nil {
		t.logUnusable(s, err)
		return nil, nil, err
	}
	source, err := s.source(client.Addr(), e.address.Addr())
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(t.hard, streamTimeout)
	defer cancel()
	key := poolKey{
		workload: w.id, source: s.identity, destination: e.identity,
		address: netip.AddrPortFrom(e.address.Addr(), hbonePort), sourceIP: source,
	}
	stream, release, err := t.pool.connect(ctx, key, hbone.Request{
		Authority: e.address.String(),
		Forwarded: "for=" + strconv.Quote(client.String()),
	})
	if status := (*hbone.StatusError)(nil); errors.As(err, &status) {
		return nil, nil, fmt.Errorf("peer's tunnel: %w", err)
	}
	return stream, release, err
}

// openSocket takes a socket of the workload's reserve and binds it to the address to connect from towards to.
func (t *tunnel) openSocket(ctx context.Context, w *workload, s *spec, client netip.Addr, to netip.AddrPort) (*os.File, error) {
	source, err := s.source(client, to.Addr())
	if err != nil {
		return nil, err
	}
	f, err := w.reserve(to.Addr()).get(ctx)
	if err != nil {
		return nil, err
	}
	if err := bindAddress(f, source); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// dialFrom connects a socket of the workload's reserve.
func (t *tunnel) dialFrom(ctx context.Context, w *workload, s *spec, client netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	f, err := t.openSocket(ctx, w, s, client, to)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return connectSocket(ctx, f, to)
}

// dialPool makes a connection for the pool.
func (t *tunnel) dialPool(ctx context.Context, key poolKey) (*hbone.Conn, *proof, error) {
	w := t.workload(key.workload)
	if w == nil {
		return nil, nil, errWorkloadGone
	}
	tcp, err := t.dialFrom(ctx, w, w.spec.Load(), key.sourceIP, key.address)
	if err != nil {
		return nil, nil, err
	}
	begin := time.Now()
	own, err := t.ids.acquire(key.source) // only now: the connect may have taken long
	if err != nil {
		t.handshake(directionOutbound, begin, err)
		reset(tcp)
		return nil, nil, err
	}
	defer own.key.release()
	p := new(proof)
	conn, err := t.clientHandshake(ctx, tcp, t.ids.clientTLS(own, key.destination, p, nil))
	t.handshake(directionOutbound, begin, err)
	if err != nil {
		return nil, nil, err
	}
	logHandshake(t.log, "outbound", key.source.String(), key.destination.String(), p, tcp.RemoteAddr())
	return conn, p, nil
}

func (t *tunnel) clientHandshake(ctx context.Context, tcp *net.TCPConn, config *tls.Config) (*hbone.Conn, error) {
	return hbone.Client(ctx, tcp, config, hbone.Config{Budget: t.budget, Logger: t.log, Stalls: &t.Metrics.WindowStalls})
}
