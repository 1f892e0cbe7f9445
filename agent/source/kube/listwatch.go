package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	// listTimeout bounds one LIST request, or one page of it.
	listTimeout = 2 * time.Minute
	// watchGrace is how much longer than it was asked to a server may keep a watch open before the client ends it. It
	// covers servers, and proxies before them, that went silent without closing anything.
	watchGrace = 30 * time.Second
	// maxWatch bounds a watch for which no time was asked.
	maxWatch = 15 * time.Minute
)

// endpoint is where one resource is read.
type endpoint struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// listWatch gives the reflector records in place of objects, and tells health how it goes.
type listWatch struct {
	endpoint
	convert converter
	health  *health
	// consistent: nothing older than what is committed by now, where the reflector asks for a state of any age. That is
	// so for its first list; a list that is streamed by a watch is consistent by itself, and later ones are never older
	// than what was seen before.
	consistent bool
}

var _ cache.ListerWatcherWithContext = (*listWatch)(nil)

// List is for the interface alone: the reflector prefers ListWithContext.
func (lw *listWatch) List(o metav1.ListOptions) (runtime.Object, error) {
	return lw.ListWithContext(context.Background(), o)
}

// Watch is for the interface alone: the reflector prefers WatchWithContext.
func (lw *listWatch) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return lw.WatchWithContext(context.Background(), o)
}

// ListWithContext reads a list, or a page of it.
func (lw *listWatch) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	if lw.consistent && o.ResourceVersion == "0" {
		o.ResourceVersion, o.ResourceVersionMatch = "", ""
	}
	list, err := lw.list(ctx, o)
	var records *recordList
	if err == nil {
		records, err = newRecordList(list, lw.convert)
	}
	if err != nil {
		lw.health.failed(ctx, "list", err)
		return nil, err
	}
	lw.health.succeeded("list")
	return records, nil
}

// WatchWithContext opens a watch.
func (lw *listWatch) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	limit := maxWatch
	if o.TimeoutSeconds != nil {
		limit = time.Duration(*o.TimeoutSeconds)*time.Second + watchGrace
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	inner, err := lw.watch(ctx, o)
	if err != nil {
		// A server that cannot stream a list says so, and is asked for a plain one.
		if o.SendInitialEvents == nil || !apierrors.IsInvalid(err) {
			lw.health.failed(ctx, "watch", err)
		}
		cancel()
		return nil, err
	}
	lw.health.opened()
	w := &recordWatch{
		listWatch: lw, cancel: cancel, inner: inner, resumes: o.SendInitialEvents == nil,
		out: make(chan watch.Event), stopped: make(chan struct{}),
	}
	w.done.Add(1)
	go w.run(ctx)
	return w, nil
}

// recordWatch converts the events of a watch as they arrive. Its goroutine ends with Stop, which waits for it.
type recordWatch struct {
	*listWatch
	cancel  context.CancelFunc
	inner   watch.Interface
	resumes bool // it may go on where it ended, as it does not stream a list
	out     chan watch.Event
	stop    sync.Once
	stopped chan struct{}
	done    sync.WaitGroup
}

// ResultChan implements watch.Interface.
func (w *recordWatch) ResultChan() <-chan watch.Event { return w.out }

// Stop implements watch.Interface.
func (w *recordWatch) Stop() {
	w.stop.Do(func() { close(w.stopped) })
	w.done.Wait()
}

func (w *recordWatch) run(ctx context.Context) {
	defer w.done.Done()
	defer close(w.out)
	defer w.health.closed()
	defer w.cancel()
	defer w.inner.Stop()
	for {
		select {
		case <-w.stopped:
			return
		case <-ctx.Done(): // also when the server keeps it open for longer than it was asked to
			return
		case e, ok := <-w.inner.ResultChan():
			if !ok {
				return
			}
			if !w.forward(ctx, e) {
				return
			}
		}
	}
}

// forward passes an event on and reports whether the watch goes on.
func (w *recordWatch) forward(ctx context.Context, e watch.Event) bool {
	converted, err := newEvent(e, w.convert)
	if err != nil {
		status := apierrors.NewInternalError(fmt.Errorf("watch event: %w", err)).Status()
		converted = watch.Event{Type: watch.Error, Object: &status}
	}
	if converted.Type == watch.Error {
		err := apierrors.FromObject(converted.Object)
		w.health.failed(ctx, "watch", err)
		if w.resumes && apierrors.HasStatusCause(err, metav1.CauseType("ClientWatchDecoding")) {
			// The connection broke. To the reflector an error means to read everything anew, an end to go on from the last event.
			return false
		}
	} else {
		w.health.heard()
	}
	select {
	case w.out <- converted:
		return converted.Type != watch.Error
	case <-w.stopped:
	case <-ctx.Done():
	}
	return false
}
