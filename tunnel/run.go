// Package tunnel is the unprivileged half of Culvert: it accepts the connections that the kernel redirects,
// carries them through mutual TLS, and knows only what the agent tells it.
//
//	app --> outbound listener --> route --+--> HBONE pool --> stream --> (the other node)
//	                                      +--> same node: delivery socket
//	                                      +--> direct: socket of the pod
//	(the other node) --> HBONE listener --> CONNECT --> delivery socket --> app
//
// Every socket that it connects was made by the agent inside the pod's network namespace. When the agent
// goes away the tunnel keeps what it has and goes on serving.
package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

const (
	hbonePort     = 15008
	maxHandshakes = 1024  // of one workload, inbound
	maxPeers      = 4096  // HBONE connections of one workload, inbound
	maxRelays     = 65536 // of one workload, outbound
	budgetBytes   = 256 << 20
)

// Redirection is the kernel's side of a redirected connection. All methods may be called at the same time.
type Redirection interface {
	// OriginalDestination is where the application wanted to go that opened a connection of the pod with the addresses
	// own.
	OriginalDestination(c *net.TCPConn, own []netip.Addr) (netip.AddrPort, error)
	// Deliver binds a socket, which is then connected to the client's address, to reach the pod's own address and port
	// app instead. After an error the socket must not be connected.
	Deliver(fd int, app netip.AddrPort) error
}

// SameNodeMode says how two pods of this node are joined.
type SameNodeMode int

const (
	SameNodeSplice SameNodeMode = iota // authorised as on the wire, joined by splice(2)
	SameNodeMTLS                       // ciphertext everywhere
)

// Options of Run.
type Options struct {
	ControlPath  string
	Redirection  Redirection
	Logger       *slog.Logger // nil discards
	SameNode     SameNodeMode
	DrainTimeout time.Duration // how long open connections may go on after the end (5 s)
	AgentGrace   time.Duration // how long a new agent has to announce a workload (30 s)
	// OnSession is told when an agent has welcomed the tunnel, and when that agent is gone. It returns at once. May be
	// nil.
	OnSession func(connected bool)
	// Stats is counted in when it is not nil.
	Stats *Stats
	// Metrics is counted in when it is not nil.
	Metrics   *telemetry.Metrics
	AccessLog *AccessLog // nil logs every connection
	Version   string     // of the program, which the agent is told
	// LogLevel is the Logger's, which the agent may change. May be nil.
	LogLevel *slog.LevelVar
}

// Stats are what Run counts. They may be read at any time and are at most a second old.
type Stats struct {
	SVIDs          atomic.Int64  // held now
	ExpiredSVIDs   atomic.Int64  // of them, those that have expired and that a workload needs
	RefusedExpired atomic.Uint64 // connections refused, ever, because the own SVID had expired
}

// tunnel is the state of one Run. Lock order: tunnel.mu, workload.mu, then reserve.mu or routes.mu; the
// pool's lock is never held together with another.
type tunnel struct {
	Options
	log       *slog.Logger
	grace     time.Duration
	ids       *identities
	pool      *pool
	budget    *hbone.Budget
	group     sync.WaitGroup // everything but what open connections run in, and accepting
	accepting sync.WaitGroup
	open      sync.WaitGroup  // open connections
	soft      context.Context // ends when no new work is taken
	hard      context.Context // ends when open connections must end

	deliveries deliveries
	noise      noise
	verifying  chan struct{} // bounds handshakes that the agent asked for
	flows      *flows
	connected  atomic.Bool             // an agent has welcomed us
	cluster    atomic.Pointer[cluster] // as an agent said; nil: none has

	mu        sync.RWMutex
	workloads map[uint64]*workload
	stopped   bool // nothing is accepted any more

	current atomic.Pointer[session] // nil while there is no agent
}

// Run serves until ctx ends, then lets open connections finish for a while, and returns once everything
// it started has ended. It reconnects to the agent for ever.
func Run(ctx context.Context, options Options) error {
	if options.ControlPath == "" || options.Redirection == nil {
		return errors.New("tunnel: control path and redirection are required")
	}
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	newTunnel(ctx, hard, options).run(cancel)
	return nil
}

// run serves until t.soft ends. cancel ends t.hard.
func (t *tunnel) run(cancel context.CancelFunc) {
	t.group.Go(func() { t.pool.run(t.soft) })
	t.group.Go(func() { t.watchTrust(t.soft) })
	t.group.Go(func() { t.watchExpiry(t.soft) })
	// What was accepted at the last moment still needs routes and sockets: the agent is left last.
	attached, leave := context.WithCancel(t.hard)
	defer leave()
	t.group.Go(func() { t.keepSession(attached) })
	t.group.Go(func() { t.flows.run(attached) })
	t.group.Go(func() { t.sweepTraffic(attached) })

	<-t.soft.Done()
	t.stopAccepting()
	t.accepting.Wait()
	t.drain(cancel)
	leave()
	t.closeWorkloads()
	t.group.Wait()
	t.pool.close()
}

// stopAccepting leaves new connections to another tunnel, which has the same listeners, or to the next one.
func (t *tunnel) stopAccepting() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	for _, w := range t.workloads {
		w.stopAccepting()
	}
}

func newTunnel(soft, hard context.Context, options Options) *tunnel {
	t := &tunnel{
		Options:   options,
		log:       options.Logger,
		grace:     options.AgentGrace,
		ids:       newIdentities(),
		budget:    hbone.NewBudget(budgetBytes),
		soft:      soft,
		hard:      hard,
		workloads: map[uint64]*workload{},
		verifying: make(chan struct{}, verifyAtOnce),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if t.grace <= 0 {
		t.grace = 30 * time.Second
	}
	if t.Stats == nil {
		t.Stats = new(Stats)
	}
	if t.DrainTimeout <= 0 {
		t.DrainTimeout = 5 * time.Second
	}
	if t.Metrics == nil {
		t.Metrics = telemetry.New()
	}
	if t.LogLevel == nil {
		t.LogLevel = new(slog.LevelVar)
	}
	t.flows = newFlows(&t.Metrics.FlowsLost)
	t.pool = newPool(hard, t.dialPool, t.ids.stands)
	t.Metrics.Observe(t.gauges)
	return t
}

func (t *tunnel) closeWorkloads() {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, w := range t.workloads {
		w.close()
	}
}

// drain waits for open connections, and ends those that take too long.
func (t *tunnel) drain(cancel context.CancelFunc) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.open.Wait()
	}()
	timeout := time.NewTimer(t.DrainTimeout)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
		cancel()
		t.pool.close() // ends the streams that are relayed
		<-done
	}
	cancel()
}

func directionOf(kind control.ListenerKind) string {
	if kind == control.ListenerKind_LISTENER_KIND_HBONE {
		return directionInbound
	}
	return directionOutbound
}

// accept takes a listener's connections until it closes.
func (t *tunnel) accept(w *workload, kind control.ListenerKind, l *net.TCPListener) {
	defer func() { _ = l.Close() }()
	serve, limit := t.outbound, w.relays
	if kind == control.ListenerKind_LISTENER_KIND_HBONE {
		serve, limit = t.inbound, w.handshakes
	}
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.noise.log(t.log, slog.LevelWarn, "accept failed", "workload", w.spec.Load().name, "error", err)
			time.Sleep(20 * time.Millisecond) // out of descriptors: the backlog waits meanwhile
			continue
		}
		if kind != control.ListenerKind_LISTENER_KIND_HBONE && kind != control.ListenerKind_LISTENER_KIND_OUTBOUND {
			reset(c)
			continue
		}
		select {
		case limit <- struct{}{}:
		default:
			reset(c)
			t.Metrics.Connection(directionOf(kind), "none", telemetry.Failed)
			w.noise.log(t.log, slog.LevelWarn, "connection reset: too many at once", "workload", w.spec.Load().name)
			continue
		}
		t.open.Go(func() { serve(w, c) })
	}
}
