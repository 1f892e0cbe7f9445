package tunnel

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// AccessLog says which connections get a line when they end.
type AccessLog struct {
	// Sample is the part of the connections that ended well which are logged, from 0 to 1. All that failed or were
	// refused are, as far as their workload has not too many of them.
	Sample float64
}

func (a *AccessLog) samples() bool { return a == nil || rand.Float64() < a.Sample }

// attributes are the names that every line about a connection has.
func (r *record) attributes() []slog.Attr {
	return []slog.Attr{
		slog.String("direction", r.direction),
		slog.String("source.workload", r.source.workload),
		slog.String("source.identity", r.source.identity),
		slog.String("source.addr", addressText(r.source.address)),
		slog.String("destination.workload", r.destination.workload),
		slog.String("destination.identity", r.destination.identity),
		slog.String("destination.addr", addressText(r.destination.address)),
		slog.String("carried", r.carried),
		slog.String("policy", r.policy),
	}
}

func addressText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// ambient are the names that Istio's ambient access log has for the same, and only what is known.
func (r *record) ambient() []slog.Attr {
	attributes := append(r.source.ambient("src"), r.destination.ambient("dst")...)
	at := r.destination.address
	if r.carried == carriedMTLS {
		attributes = append(attributes, slog.String("dst.hbone_addr", at.String()))
		at = netip.AddrPortFrom(at.Addr(), hbonePort)
	}
	if at.IsValid() {
		attributes = append(attributes, slog.String("dst.addr", at.String()))
	}
	if r.mode != "" {
		attributes = append(attributes, slog.String("mode", r.mode))
	}
	return attributes
}

func (p party) ambient(end string) (attributes []slog.Attr) {
	if end == "src" {
		attributes = append(attributes, slog.String("src.addr", p.address.String()))
	}
	if namespace, name, ok := strings.Cut(p.workload, "/"); ok {
		attributes = append(attributes, slog.String(end+".workload", name), slog.String(end+".namespace", namespace))
	}
	if p.identity != "" {
		attributes = append(attributes, slog.String(end+".identity", p.identity))
	}
	return attributes
}

func (r *record) logOpen() {
	if log := r.tunnel.log; log.Enabled(context.Background(), slog.LevelDebug) {
		log.LogAttrs(context.Background(), slog.LevelDebug, "connection open", r.attributes()...)
	}
}

// logComplete writes that the connection has ended, or never came to be.
func (r *record) logComplete(stats hbone.Stats, flags, reason string) {
	var suppressed uint64
	if reason == "" {
		if !r.tunnel.AccessLog.samples() {
			return
		}
	} else {
		var ok bool
		if suppressed, ok = r.workload.noise.allow("connection complete", time.Now()); !ok {
			return
		}
	}
	own := stats // of the end that is of this node
	if r.direction == directionInbound {
		own.Sent, own.Received = stats.Received, stats.Sent
	}
	attributes := append(r.attributes(),
		slog.Uint64("sent", stats.Sent), slog.Uint64("received", stats.Received),
		slog.Duration("duration", time.Since(r.start)),
		slog.Uint64("bytes_sent", own.Sent), slog.Uint64("bytes_recv", own.Received),
		slog.String("response_flags", flags))
	attributes = append(attributes, r.ambient()...)
	if reason != "" {
		attributes = append(attributes, slog.String("error", reason), slog.String("reason", reason))
	}
	r.log(slog.LevelInfo, "connection complete", attributes, suppressed)
}

// logRefused writes that the connection was turned away. Messages are constants of this package.
func (r *record) logRefused(level slog.Level, message, flags, reason string, more []slog.Attr) {
	suppressed, ok := r.workload.noise.allow(message, time.Now())
	if !ok {
		return
	}
	attributes := append(append(r.attributes(), slog.String("reason", reason), slog.String("response_flags", flags)), r.ambient()...)
	r.log(level, message, append(attributes, more...), suppressed)
}

func (r *record) log(level slog.Level, message string, attributes []slog.Attr, suppressed uint64) {
	if suppressed > 0 {
		attributes = append(attributes, slog.Uint64("suppressed", suppressed))
	}
	r.tunnel.log.LogAttrs(context.Background(), level, message, attributes...)
}

func logHandshake(log *slog.Logger, direction, source, destination string, p *proof, peer net.Addr) {
	log.Debug("TLS handshake complete", "direction", direction, "source", source, "destination", destination,
		"tls_version", tls.VersionName(p.version), "cipher", tls.CipherSuiteName(p.cipher), "peer", peer.String())
}

const noisePerSecond = 10

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

func (n *noise) log(log *slog.Logger, level slog.Level, message string, args ...any) (written bool) {
	suppressed, ok := n.allow(message, time.Now())
	if !ok {
		return false
	}
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	log.Log(context.Background(), level, message, args...)
	return true
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

// leftOut returns how many lines of which kind no line has told of yet, and will not soon.
func (n *noise) leftOut(now time.Time) map[string]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[string]uint64{}
	for kind, k := range n.kinds {
		if k.suppressed > 0 && k.second != now.Unix() {
			all[kind], k.suppressed = k.suppressed, 0
		}
	}
	return all
}

// tellLeftOut writes what is left when a flood has ended: no line comes after it that would tell.
func (t *tunnel) tellLeftOut(now time.Time) {
	tell := func(n *noise, more ...any) {
		for kind, count := range n.leftOut(now) {
			t.log.Info("log lines left out", append(more, "like", kind, "suppressed", count)...)
		}
	}
	tell(&t.noise)
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, w := range t.workloads {
		tell(&w.noise, "workload", w.spec.Load().name)
	}
}
