package tunnel

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// How a connection was carried.
const (
	carriedMTLS      = "mtls"
	carriedSameNode  = "same-node"
	carriedPlaintext = "plaintext"
)

// party is one end of a connection, as far as it is known.
type party struct {
	workload string
	identity string
	address  netip.AddrPort
}

// record is the log's view of one connection.
type record struct {
	log         *slog.Logger
	direction   string // inbound, outbound
	source      party
	destination party
	carried     string
	policy      string
	start       time.Time
}

func (r *record) attributes() []slog.Attr {
	return []slog.Attr{
		slog.String("direction", r.direction),
		slog.String("source.workload", r.source.workload),
		slog.String("source.identity", r.source.identity),
		slog.String("source.addr", r.source.address.String()),
		slog.String("destination.workload", r.destination.workload),
		slog.String("destination.identity", r.destination.identity),
		slog.String("destination.addr", r.destination.address.String()),
		slog.String("carried", r.carried),
		slog.String("policy", r.policy),
	}
}

// open logs that the connection is there.
func (r *record) open() {
	r.log.LogAttrs(context.Background(), slog.LevelDebug, "connection open", r.attributes()...)
}

// complete logs that it has ended, or never came to be.
func (r *record) complete(stats hbone.Stats, err error) {
	attributes := append(r.attributes(),
		slog.Uint64("sent", stats.Sent), slog.Uint64("received", stats.Received),
		slog.Duration("duration", time.Since(r.start)))
	if err != nil {
		attributes = append(attributes, slog.String("error", err.Error()))
	}
	r.log.LogAttrs(context.Background(), slog.LevelInfo, "connection complete", attributes...)
}

// refused logs that policy forbids the connection.
func (r *record) refused(reason string) {
	r.log.LogAttrs(context.Background(), slog.LevelInfo, "connection refused", append(r.attributes(), slog.String("reason", reason))...)
}

func logHandshake(log *slog.Logger, direction, source, destination string, p *proof, peer net.Addr) {
	log.Debug("TLS handshake complete", "direction", direction, "source", source, "destination", destination,
		"tls_version", tls.VersionName(p.version), "cipher", tls.CipherSuiteName(p.cipher), "peer", peer.String())
}

const (
	noisePerSecond = 10
)

// noise limits the lines that an outsider can cause, per kind of line, and says how many it left out.
type noise struct {
	mu    sync.Mutex
	kinds map[string]*noiseKind
}

type noiseKind struct {
	second     int64
	count      int
	suppressed uint64
}

func (n *noise) log(log *slog.Logger, level slog.Level, message string, args ...any) {
	suppressed, ok := n.allow(message, time.Now())
	if !ok {
		return
	}
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	log.Log(context.Background(), level, message, args...)
}

func (n *noise) allow(kind string, now time.Time) (suppressed uint64, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.kinds == nil {
		n.kinds = make(map[string]*noiseKind)
	}
	k := n.kinds[kind]
	if k == nil {
		k = &noiseKind{}
		n.kinds[kind] = k // kinds are constants of this package
	}
	if second := now.Unix(); second != k.second {
		k.second, k.count = second, 0
	}
	if k.count >= noisePerSecond {
		k.suppressed++
		return 0, false
	}
	k.count++
	suppressed, k.suppressed = k.suppressed, 0
	return suppressed, true
}
