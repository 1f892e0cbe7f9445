package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/observe"
)

const (
	// observeInterval is how often the kernel is asked what plaintext it has counted, lookInterval how often which is
	// open, and saveInterval how often what was seen is saved.
	observeInterval = 3 * time.Second
	lookInterval    = time.Minute
	saveInterval    = 30 * time.Second
	// fresh is how old a look may be for an answer to people.
	fresh = time.Second
)

// kernel is what is asked of the datapath.
type kernel interface {
	Plaintext() ([]datapath.PlaintextCount, error)
	OpenPlaintext(netns *os.File, cookie uint64) ([]datapath.OpenPlaintext, error)
}

// lookout orders the looks at the kernel: one at a time.
type lookout struct {
	turn   chan struct{} // has one token
	looked time.Time     // when a look at everything began; whoever has the token may touch it
}

func newLookout() lookout {
	w := lookout{turn: make(chan struct{}, 1)}
	w.turn <- struct{}{}
	return w
}

// follow asks the kernel for plaintext, and saves what was seen, until ctx ends.
func (o *observer) follow(ctx context.Context) error {
	tick := time.NewTicker(observeInterval)
	defer tick.Stop()
	saved, failing, blind := time.Now(), false, false
	save := func() {
		err := o.memory.Save()
		if err != nil && !failing {
			o.agent.log.Warn("what was seen of connections is not saved; it is tried again", "error", err)
		}
		saved, failing = time.Now(), err != nil
	}
	defer save()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := o.look(ctx, o.agent.path, lookInterval)
		if err != nil && !blind && ctx.Err() == nil {
			o.agent.log.Warn("plaintext connections not read; it is tried again", "error", err)
		}
		blind = err != nil
		if time.Since(saved) > saveInterval {
			save()
		}
	}
}

// look reads what the kernel has counted, and, if that was not done for so long, which connections are open.
func (o *observer) look(ctx context.Context, k kernel, everything time.Duration) error {
	select {
	case <-o.lookout.turn:
		defer func() { o.lookout.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	v, cookies, err := o.poll(ctx, k)
	if err != nil || v.snapshot == nil || time.Since(o.lookout.looked) < everything {
		return err
	}
	begin := time.Now()
	for _, cookie := range cookies {
		if err := o.lookInto(ctx, k, v, cookie); err != nil {
			o.memory.Unseen(cookie)
			o.agent.log.Warn("open connections of a pod not read", "cookie", cookie, "error", err)
		}
	}
	o.memory.Elsewhere(v.elsewhere(o.memory.Watched()))
	o.lookout.looked = begin
	return ctx.Err()
}

// poll takes only what is the loop's on the loop.
func (o *observer) poll(ctx context.Context, k kernel) (v *view, cookies []uint64, err error) {
	own, err := ownAddresses()
	if err != nil {
		return nil, nil, err
	}
	err = inspector{agent: o.agent}.inspect(ctx, func(a *Agent) error {
		v = o.view().detached(a)
		if v.snapshot == nil {
			return nil
		}
		v.withoutServices(own)
		o.own.Store(&own)
		v.own = own
		enrolled := make(map[uint64]observe.Workload, len(a.workloads))
		for cookie, w := range a.workloads {
			enrolled[cookie] = observedWorkload(w.pod)
			cookies = append(cookies, cookie)
		}
		o.memory.Enrolled(enrolled, slices.Collect(maps.Keys(a.lingering))...) // here, so that no pod comes or goes in between
		o.tellUnwatched(a)
		return nil
	})
	if err != nil {
		return nil, nil, err // the question may still be running, and fill v
	}
	if v.snapshot == nil {
		return v, nil, nil
	}
	counts, now, err := readCounts(k)
	if err != nil {
		return nil, nil, err
	}
	o.memory.Plaintext(counts, now, v.peer)
	return v, cookies, nil
}

// tellUnwatched runs on the loop. A pod without an address has not started, and one whose sandbox ended runs no more.
func (o *observer) tellUnwatched(a *Agent) {
	for ref, pod := range a.snapshot.Local() {
		over := pod.UID != "" && a.ended[ref].uid == pod.UID
		if a.byPod[ref] == nil && len(pod.Addresses) > 0 && !pod.HostNetwork && !over {
			o.memory.Unwatched(observedWorkload(pod))
		}
	}
}

func readCounts(k kernel) ([]observe.Count, uint64, error) {
	plaintext, err := k.Plaintext()
	if err != nil {
		return nil, 0, err
	}
	counts := make([]observe.Count, len(plaintext))
	for i, c := range plaintext {
		counts[i] = observe.Count(c)
	}
	now, err := monotonic()
	return counts, now, err
}

// lookInto finds the plaintext connections that are open in a pod. One that leaves meanwhile has none.
func (o *observer) lookInto(ctx context.Context, k kernel, v *view, cookie uint64) error {
	var netns *os.File
	err := inspector{agent: o.agent}.inspect(ctx, func(a *Agent) (err error) {
		if w := a.workloads[cookie]; w != nil {
			netns, err = w.netns.Duplicate()
		}
		return err
	})
	if err != nil || netns == nil {
		return err
	}
	defer netns.Close()
	found, err := k.OpenPlaintext(netns, cookie)
	if err != nil {
		return o.unlessGone(ctx, cookie, err)
	}
	open := make([]observe.Open, len(found))
	for i, c := range found {
		open[i] = observe.Open(c)
	}
	o.memory.Opened(cookie, open, v.peer)
	return nil
}

func (o *observer) unlessGone(ctx context.Context, cookie uint64, cause error) error {
	return inspector{agent: o.agent}.inspect(ctx, func(a *Agent) error {
		if a.workloads[cookie] == nil {
			return nil
		}
		return cause
	})
}

// arrived runs on the loop, for every pod that was enrolled. watched says that nothing of it has run unwatched.
func (o *observer) arrived(w *workload, watched bool) {
	o.memory.Arrived(w.id, observedWorkload(w.pod), watched)
}

// leaving runs on the loop, before the kernel forgets a pod.
func (o *observer) leaving(cookie uint64) {
	counts, now, err := readCounts(o.agent.path)
	if err != nil {
		o.memory.Missed()
		o.agent.log.Warn("last plaintext connections of a pod not read", "cookie", cookie, "error", err)
		return
	}
	o.memory.Leaving(cookie, counts, now, o.view().peer)
}

// withoutServices leaves out what kube-proxy, by IPVS, gives the node of every Service.
func (v *view) withoutServices(own map[netip.Addr]bool) {
	maps.DeleteFunc(own, func(a netip.Addr, _ bool) bool {
		return v.snapshot.ServiceByAddress(netip.AddrPortFrom(a, 0)) != nil
	})
}

// elsewhere tells which other nodes have enrolled pods of which of these workloads, by their keys.
func (v *view) elsewhere(watched []observe.Watched) map[string]map[string]bool {
	namespaces := map[string]bool{}
	for i := range watched {
		namespaces[watched[i].Namespace] = true
	}
	nodes := map[string]map[string]bool{}
	for address := range v.snapshot.Addresses() {
		pod := v.pod(address)
		if pod == nil || pod.Node == v.node || !namespaces[pod.Namespace] || !v.enrolled(pod) {
			continue
		}
		w := observedWorkload(pod)
		key := w.Key()
		if nodes[key] == nil {
			nodes[key] = map[string]bool{}
		}
		nodes[key][pod.Node] = true
	}
	return nodes
}

// enrolledOn are the nodes that have enrolled pods of the namespace, or of any if it is empty.
func (v *view) enrolledOn(namespace string) []string {
	nodes := map[string]bool{}
	for address := range v.snapshot.Addresses() {
		pod := v.pod(address)
		if pod != nil && (namespace == "" || pod.Namespace == namespace) && !nodes[pod.Node] && v.enrolled(pod) {
			nodes[pod.Node] = true
		}
	}
	return slices.Sorted(maps.Keys(nodes))
}

// monotonic is the clock of the kernel's programs.
func monotonic() (uint64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("monotonic clock: %w", err)
	}
	return uint64(t.Nano()), nil
}

// ownAddresses are the node's: an agent is in its network namespace.
func ownAddresses() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of the node: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if address, ok := netip.AddrFromSlice(n.IP); ok && !address.IsLoopback() {
				own[address.Unmap()] = true
			}
		}
	}
	return own, nil
}
