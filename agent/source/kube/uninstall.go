package kube

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// uninstall is the end of the agent, as its own objects announce it. The Namespace's end counts at once. The end of
// the DaemonSet is a suspicion, which confirm looks into: one that is made anew under its name is an upgrade.
type uninstall struct {
	log *slog.Logger
	own ownAPI
	pace
	health    *health // of the DaemonSet's feed
	begun     chan struct{}
	once      sync.Once
	suspicion chan struct{} // holds one: the DaemonSet may be gone
	turn      chan struct{} // holds one while somebody confirms

	set, namespace *watchFeed

	mu    sync.Mutex
	owner owner // of the agent's own pod, when that was last read; without a name it is not known
	sight sight
}

// sight is what the DaemonSet's feed saw last.
type sight int

const (
	nothing   sight = iota
	deletion        // it is ending, or was deleted
	orphaning       // so, but its pods are to outlive it: it is to be replaced
)

func (u *uninstall) begin(why string) {
	u.once.Do(func() {
		u.log.Info("Culvert is being uninstalled", "reason", why)
		close(u.begun)
	})
}

func (u *uninstall) isBegun() bool {
	select {
	case <-u.begun:
		return true
	default:
		return false
	}
}

func (u *uninstall) suspect() {
	select {
	case u.suspicion <- struct{}{}:
	default: // it is suspected already
	}
}

func (u *uninstall) seen() sight {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sight
}

func (u *uninstall) saw(s sight) {
	u.mu.Lock()
	u.sight = s
	u.mu.Unlock()
	if s == deletion {
		u.suspect()
	}
}

func (u *uninstall) knownOwner() owner {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.owner
}

func (u *uninstall) learn(o owner) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.owner = o
}

var (
	daemonSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
)

// addUninstall sets up the feeds of the agent's own DaemonSet and Namespace.
func (s *Source) addUninstall() {
	o := &s.options
	u := &uninstall{
		log: s.log, pace: *o.pace, own: ownAPI{client: s.clients.metadata, namespace: o.Namespace, pod: o.Pod},
		begun: make(chan struct{}), suspicion: make(chan struct{}, 1), turn: make(chan struct{}, 1),
	}
	s.uninstall = u
	if o.DaemonSet == "" {
		return
	}
	u.set = s.feed("own daemonsets", versions{open: func(string) endpoint {
		return s.clients.metadataOf(daemonSets, o.Namespace, u.knownOwner().name)
	}}, convertLife)
	u.health = u.set.health
	u.namespace = s.feed("own namespaces", versions{open: func(string) endpoint {
		return s.clients.metadataOf(namespaces, "", o.Namespace)
	}}, convertLife)
	u.set.consistent, u.namespace.consistent = true, true
}

// Uninstalling is closed when Culvert is known to leave this node: the agent's namespace ends, or the DaemonSet that its
// pod belongs to is gone and was not made anew. Errors never count.
func (s *Source) Uninstalling() <-chan struct{} { return s.uninstall.begun }

// WatchUninstall follows the agent's own objects until ctx ends, or until it has closed Uninstalling. It does not need Run,
// and may outlive it.
func (s *Source) WatchUninstall(ctx context.Context) {
	u := s.uninstall
	if u.set == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { u.namespace.run(ctx, ownNamespace{u, s.options.Namespace}) })
	running.Go(func() {
		if name := u.findOwner(ctx, s.options.DaemonSet); name != "" {
			u.set.run(ctx, ownSet{u, objectKey{s.options.Namespace, name}})
		}
	})
	retry := backoff{first: u.first, most: u.most}
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.begun:
			return
		case <-u.suspicion:
		}
		retry.reset()
		for u.confirm(ctx) == unknown && ctx.Err() == nil {
			sleep(ctx, retry.next())
		}
	}
}

// findOwner returns the name of the DaemonSet that the agent's pod belongs to, and looks until there is one.
func (u *uninstall) findOwner(ctx context.Context, want string) string {
	if u.own.pod == "" {
		u.log.Warn("the agent does not know its pod's name: an uninstall that deletes its DaemonSet alone leaves traces on the node")
		return ""
	}
	warned := false
	retry := backoff{first: u.first, most: u.most}
	for ctx.Err() == nil {
		o, state, err := u.own.ofPod(ctx)
		switch {
		case err != nil:
			u.health.failed(ctx, "list own pod", err)
		case state == podOwned:
			u.health.succeeded("list own pod")
			if o.name != want {
				u.log.Warn("the agent's DaemonSet has another name than expected; the agent's Role has to name it", "name", o.name, "expected", want)
			}
			u.learn(o)
			return o.name
		case !warned:
			warned = true
			u.log.Warn("the agent's pod belongs to no DaemonSet: an uninstall that leaves the namespace is not seen",
				"pod", u.own.namespace+"/"+u.own.pod, "exists", state != podGone)
		}
		sleep(ctx, retry.next())
	}
	return ""
}

// life is what is kept of an object whose end is waited for.
type life struct {
	ending   bool
	orphaned bool // what it owns is to outlive it
}

func convertLife(o runtime.Object) any {
	m, ok := o.(metav1.Object)
	if !ok {
		return nil
	}
	return life{m.GetDeletionTimestamp() != nil, slices.Contains(m.GetFinalizers(), metav1.FinalizerOrphanDependents)}
}

// ownSet takes what the feed of the agent's DaemonSet delivers.
type ownSet struct {
	*uninstall
	key objectKey
}

var _ sink = ownSet{}

func (w ownSet) set(k objectKey, v any) {
	l, ok := v.(life)
	switch {
	case k != w.key || !ok:
	case !l.ending:
		w.saw(nothing)
	case l.orphaned:
		w.saw(orphaning)
	default:
		w.saw(deletion)
	}
}

func (w ownSet) remove(k objectKey) {
	if k == w.key && w.seen() != orphaning {
		w.saw(deletion)
	}
}

// replace takes an empty list for a hint only.
func (w ownSet) replace(all map[objectKey]any) {
	if v, there := all[w.key]; there {
		w.set(w.key, v)
		return
	}
	w.suspect()
}

// ownNamespace takes what the feed of the agent's Namespace delivers.
type ownNamespace struct {
	*uninstall
	name string
}

var _ sink = ownNamespace{}

func (w ownNamespace) set(k objectKey, v any) {
	if l, ok := v.(life); ok && k.name == w.name && l.ending {
		w.begin("namespace " + w.name + " is being deleted")
	}
}

func (w ownNamespace) remove(k objectKey) {
	if k.name == w.name {
		w.begin("namespace " + w.name + " was deleted")
	}
}

func (w ownNamespace) replace(all map[objectKey]any) {
	k := objectKey{"", w.name}
	if v, there := all[k]; there {
		w.set(k, v)
		return
	}
	w.suspect()
}
