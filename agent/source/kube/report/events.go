package report

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/record/util"

	"github.com/culvert-mesh/culvert/agent/source"
)

// The reasons of our Events.
const (
	reasonEnrolled       = "Enrolled"
	reasonNotEnrolled    = "NotEnrolled"
	reasonPolicyRejected = "PolicyRejected"

	normal  = corev1.EventTypeNormal
	warning = corev1.EventTypeWarning

	component  = "culvert-agent"
	controller = "culvert.dev/agent"

	verbCreateEvents = "create events"
	verbPatchEvents  = "patch events"
)

const (
	maxEvents = 1024 // that wait
	// maxMessage is the API's bound on an Event's note.
	maxMessage = 1024
	// Of one object, an agent writes ten Events at once and then one a minute, however often it changes.
	objectBurst = 10
	objectQPS   = 1. / 60
	// After as many Events of one reason within ten minutes the messages are told together.
	combineAfter = 5
	// An Event that cannot be written is tried again for a while: it is news, not state.
	eventAttempts = 5
)

// eventWriter writes Events in the order in which they come. The correlator combines equal and similar ones and
// bounds them per object; it is client-go's, but the queue is ours, so that the goroutine is waited for.
type eventWriter struct {
	client     kubernetes.Interface
	node       string
	once       *onceLog
	queue      chan *corev1.Event
	correlator *record.EventCorrelator
	written    atomic.Uint64
	failures   atomic.Uint64
	dropped    atomic.Uint64
}

func newEventWriter(client kubernetes.Interface, node string, once *onceLog) *eventWriter {
	return &eventWriter{
		client: client, node: node, once: once,
		queue: make(chan *corev1.Event, maxEvents),
		correlator: record.NewEventCorrelatorWithOptions(record.CorrelatorOptions{
			BurstSize: objectBurst, QPS: objectQPS, MaxEvents: combineAfter,
		}),
	}
}

func podObject(pod *source.Pod) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID)}
}

// send queues an Event, or drops it when too many wait.
func (w *eventWriter) send(object corev1.ObjectReference, kind, reason, message string) {
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: object.Namespace, Name: util.GenerateEventName(object.Name, now.UnixNano())},
		InvolvedObject: object,
		Type:           kind, Reason: reason, Message: clip(message, maxMessage),
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source:              corev1.EventSource{Component: component, Host: w.node},
		ReportingController: controller, ReportingInstance: w.node,
	}
	select {
	case w.queue <- event:
	default:
		w.dropped.Add(1)
	}
}

// clip shortens s to at most n bytes without cutting a character in two.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	const more = " ..."
	for n -= len(more); n > 0 && !utf8.RuneStart(s[n]); n-- {
	}
	return s[:n] + more
}

func (w *eventWriter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-w.queue:
			w.write(ctx, event)
		}
	}
}

func (w *eventWriter) write(ctx context.Context, event *corev1.Event) {
	result, err := w.correlator.EventCorrelate(event)
	if err != nil || result.Skip {
		w.dropped.Add(1)
		return
	}
	for pause := minRetry; ; pause *= 4 {
		err := w.put(ctx, result.Event, result.Patch)
		if err == nil {
			w.written.Add(1)
			return
		}
		w.failures.Add(1)
		if !worthRetry(err) || pause > minRetry<<(2*(eventAttempts-2)) {
			w.dropped.Add(1)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// put writes a new Event, or raises the count of one that is there.
func (w *eventWriter) put(ctx context.Context, event *corev1.Event, patch []byte) error {
	ctx, stop := context.WithTimeout(ctx, requestTimeout)
	defer stop()
	events := w.client.CoreV1().Events(event.Namespace)
	operation := verbCreateEvents
	var result *corev1.Event
	err := error(apierrors.NewNotFound(corev1.Resource("events"), event.Name))
	if event.Count > 1 && patch != nil {
		operation = verbPatchEvents
		result, err = events.Patch(ctx, event.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if apierrors.IsNotFound(err) { // new, or it was there and expired
		operation = verbCreateEvents
		event.ResourceVersion = ""
		result, err = events.Create(ctx, event, metav1.CreateOptions{})
	}
	switch {
	case err == nil:
		w.correlator.UpdateState(result)
		w.once.worked(operation)
		return nil
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return err // the namespace is going, which is no news
	}
	w.once.failed(operation, "event not written", err, "object", event.InvolvedObject.Namespace+"/"+event.InvolvedObject.Name)
	return err
}

// worthRetry reports whether the same request may be answered otherwise in a moment.
func worthRetry(err error) bool {
	var s apierrors.APIStatus
	if !errors.As(err, &s) {
		return !errors.Is(err, context.Canceled) // not an answer: the API server is away
	}
	return apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsInternalError(err) || apierrors.IsTimeout(err)
}
