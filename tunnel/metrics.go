package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

const trafficSweep = time.Minute

// sweepTraffic drops what was counted of workloads that are gone, and has the log tell what it left out.
func (t *tunnel) sweepTraffic(ctx context.Context) {
	tick := time.NewTicker(trafficSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			present := t.present()
			t.Metrics.Traffic.Sweep(now, func(p telemetry.Party) bool { return present[p] })
			t.tellLeftOut(now)
		}
	}
}

// present returns what the workloads of this node are counted as. Several may be one: the pods of a Deployment.
func (t *tunnel) present() map[telemetry.Party]bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	parties := make(map[telemetry.Party]bool, len(t.workloads))
	for _, w := range t.workloads {
		parties[t.labels(w.spec.Load().party())] = true
	}
	return parties
}

// gauges returns what there is now.
func (t *tunnel) gauges() telemetry.Gauges {
	connections, streams := t.pool.size()
	return telemetry.Gauges{
		PoolConnections: connections, PoolStreams: streams,
		BufferedBytes: t.budget.Used(), ReserveSockets: t.reserved(),
		SVIDs: t.Stats.SVIDs.Load(), ExpiredSVIDs: t.Stats.ExpiredSVIDs.Load(), RefusedExpired: t.Stats.RefusedExpired.Load(),
		AgentConnected: t.connected.Load(),
	}
}

func (t *tunnel) reserved() (sockets int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, w := range t.workloads {
		sockets += w.v4.size() + w.v6.size()
	}
	return sockets
}

// handshake counts one. begin is when it began.
func (t *tunnel) handshake(direction string, begin time.Time, err error) {
	if err != nil {
		t.Metrics.HandshakeFailed(direction, handshakeFailure(err))
		return
	}
	t.Metrics.Handshake(direction, time.Since(begin))
}

// peerError is what is wrong about the other side of a handshake.
type peerError struct {
	error
	reason string
}

func (e *peerError) Unwrap() error { return e.error }

// handshakeFailure returns the reason for an error, one of few.
func handshakeFailure(err error) string {
	var peer *peerError
	var network net.Error
	switch {
	case errors.As(err, &peer):
		return peer.reason
	case errors.Is(err, errNoCertificate):
		return "no_certificate"
	case errors.Is(err, errExpired):
		return "own_expired"
	case aboutCertificate(err):
		return "peer_refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return "connection_lost"
	default:
		return "other"
	}
}
