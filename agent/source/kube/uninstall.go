package kube

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
)

// getTimeout bounds a GET of one object.
const getTimeout = 20 * time.Second

// uninstall is the end of the agent, as its own objects announce it.
type uninstall struct {
	log   *slog.Logger
	once  sync.Once
	begun chan struct{}
}

func (u *uninstall) begin(why string) {
	u.once.Do(func() {
		u.log.Info("the agent is being uninstalled", "reason", why)
		close(u.begun)
	})
}

// addUninstall sets up the feeds of the agent's own DaemonSet and Namespace.
func (s *Source) addUninstall() {
	s.uninstall = &uninstall{log: s.log, begun: make(chan struct{})}
	if s.options.DaemonSet == "" {
		return
	}
	apps := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	s.addOwn("DaemonSet", apps, objectKey{s.options.Namespace, s.options.DaemonSet})
	s.addOwn("Namespace", schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, objectKey{"", s.options.Namespace})
}

func (s *Source) addOwn(kind string, gvr schema.GroupVersionResource, k objectKey) {
	at, client := s.clients.metadataOf(gvr, k.namespace, k.name)
	name := "own " + gvr.Resource
	f := s.feed(name, versions{open: func(string) endpoint { return at }}, convertLife)
	s.jobs = append(s.jobs, job{&ownFeed{f, &own{uninstall: s.uninstall, kind: kind, key: k, client: client, pace: *s.options.pace}}, nil})
}

// life is what is kept of an object whose end is waited for.
type life struct {
	uid      string
	ending   bool
	orphaned bool // its pods are to outlive it: it is to be replaced, not removed
}

func convertLife(o runtime.Object) any {
	m, ok := o.(metav1.Object)
	if !ok {
		return nil
	}
	return life{string(m.GetUID()), m.GetDeletionTimestamp() != nil, slices.Contains(m.GetFinalizers(), metav1.FinalizerOrphanDependents)}
}

// ownFeed feeds an own with what it needs to ask again.
type ownFeed struct {
	feed
	own *own
}

func (f *ownFeed) run(ctx context.Context, _ sink) {
	f.own.ctx = ctx
	f.feed.run(ctx, f.own)
}

// own is one of the agent's own objects. It belongs to its feed's goroutine.
type own struct {
	*uninstall
	ctx    context.Context // of the feed: replace may have to ask the API server
	kind   string
	key    objectKey
	client metadata.ResourceInterface
	pace   pace
	// orphaned: it was deleted without its pods. Only one that is there again can end the agent.
	orphaned bool
}

var _ sink = (*own)(nil)

func (w *own) set(k objectKey, v any) {
	l, ok := v.(life)
	if k != w.key || !ok {
		return
	}
	w.orphaned = l.ending && l.orphaned
	if l.ending && !l.orphaned {
		w.begin(w.kind + " " + k.String() + " is being deleted")
	}
}

func (w *own) remove(k objectKey) {
	if k == w.key && !w.orphaned {
		w.begin(w.kind + " " + k.String() + " was deleted")
	}
}

// replace takes an empty list for a hint only: it asks for the object itself until there is an answer.
func (w *own) replace(all map[objectKey]any) {
	if v, there := all[w.key]; there {
		w.set(w.key, v)
		return
	}
	retry := backoff{first: w.pace.first, most: w.pace.most}
	for missing := 0; w.ctx.Err() == nil && !w.orphaned; {
		l, err := w.get()
		switch {
		case err == nil:
			w.set(w.key, l)
			return
		case apierrors.IsNotFound(err) && missing == 1:
			w.begin(w.kind + " " + w.key.String() + " does not exist")
			return
		case apierrors.IsNotFound(err):
			missing++ // asked once more, as of several API servers one may be a moment behind
			retry.reset()
		}
		sleep(w.ctx, retry.next())
	}
}

func (w *own) get() (life, error) {
	ctx, cancel := context.WithTimeout(w.ctx, getTimeout)
	defer cancel()
	o, err := w.client.Get(ctx, w.key.name, metav1.GetOptions{})
	if err != nil {
		return life{}, err
	}
	return convertLife(o).(life), nil
}
