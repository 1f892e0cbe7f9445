package report

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

const (
	pageSize = 500
	// rediscover is how often a kind is looked for that is not served, or has no status.
	rediscover = 5 * time.Minute
)

// board is what a leader knows of the conditions that stand. It begins with what a predecessor wrote, so that
// nothing is written, and no Event sent, twice. The leader's goroutine owns it.
type board struct {
	*PolicyStatus
	kinds map[string]*shelf
}

// shelf is the part of the board for one kind.
type shelf struct {
	policyKind
	served
	found  bool
	looked time.Time
	listed bool
	stands map[key]verdict
	told   map[key]verdict   // what the last Event said
	later  map[key]time.Time // what could not be written, until when it is left alone
	paused time.Time         // the same for all of the kind
}

type key struct{ namespace, name string }

// verdict is a condition as it stands, or is to stand.
type verdict struct {
	uid        string // "" when not known
	accepted   bool
	message    string
	generation int64 // 0 when a status without generations holds it
}

// covers reports whether v, which stands, says what want says.
func (v verdict) covers(want verdict) bool {
	return v.accepted == want.accepted && v.message == want.message &&
		(v.generation == want.generation || v.generation == 0) &&
		(v.uid == want.uid || v.uid == "" || want.uid == "")
}

// task is one condition to write.
type task struct {
	*shelf
	key
	want verdict
}

func newBoard(s *PolicyStatus) *board {
	b := &board{PolicyStatus: s, kinds: map[string]*shelf{}}
	for _, k := range policyKinds() {
		b.kinds[k.kind] = &shelf{policyKind: k, stands: map[key]verdict{}, told: map[key]verdict{}, later: map[key]time.Time{}}
	}
	return b
}

// round writes what is missing, at the pace that is allowed, until all is written or there is newer input.
func (b *board) round(ctx context.Context, input *policyInput) {
	tasks := b.missing(ctx, input)
	for _, t := range tasks {
		if time.Now().Before(t.paused) {
			continue
		}
		if b.limit.Wait(ctx) != nil || b.latest() != input {
			return
		}
		b.try(ctx, t)
	}
}

// missing returns what is to be written, what has problems first, and forgets policies that are no more.
func (b *board) missing(ctx context.Context, input *policyInput) []task {
	var tasks []task
	seen := map[*shelf]map[key]struct{}{}
	add := func(ref PolicyRef, accepted bool, message string) {
		s := b.kinds[ref.Kind]
		if s == nil || !b.ready(ctx, s) {
			return
		}
		if seen[s] == nil {
			seen[s] = map[key]struct{}{}
		}
		k := key{ref.Namespace, ref.Name}
		seen[s][k] = struct{}{}
		want := verdict{ref.UID, accepted, message, ref.Generation}
		if stands, ok := s.stands[k]; ok && stands.covers(want) || time.Now().Before(s.later[k]) {
			return
		}
		if accepted && !s.hasStatus {
			return // there is nowhere to write it, and it is no event
		}
		tasks = append(tasks, task{s, k, want})
	}
	for _, p := range input.problems {
		add(p.PolicyRef, false, clip(p.Err.Error(), maxMessage))
	}
	for _, ref := range input.valid {
		add(ref, true, acceptedMessage)
	}
	for s, keys := range seen {
		for k := range s.stands {
			if _, there := keys[k]; !there {
				delete(s.stands, k)
				delete(s.told, k)
			}
		}
		for k, until := range s.later {
			if time.Now().After(until) {
				delete(s.later, k)
			}
		}
	}
	return tasks
}

// ready reports whether it is known where the kind is served and what conditions stand.
func (b *board) ready(ctx context.Context, s *shelf) bool {
	now := time.Now()
	if now.Before(s.paused) {
		return false
	}
	if (!s.found || !s.hasStatus) && now.Sub(s.looked) > rediscover || s.looked.IsZero() {
		s.looked = now
		if where, ok := discover(b.Client.Discovery(), s.policyKind); ok {
			s.listed = s.listed && s.hasStatus == where.hasStatus
			s.served, s.found = where, true
		}
	}
	if !s.found {
		return false
	}
	if !s.listed && s.hasStatus {
		if err := b.list(ctx, s); err != nil {
			s.paused = now.Add(pause)
			b.once.failed(s.permission("list", ""), "conditions not read", err)
			return false
		}
	}
	s.listed = true
	return true
}

// list reads the conditions that stand.
func (b *board) list(ctx context.Context, s *shelf) error {
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := b.page(ctx, s, "", options)
		if err != nil {
			return err
		}
		for i := range page.Items {
			o := &page.Items[i]
			if v, ok := standing(o); ok {
				k := key{o.GetNamespace(), o.GetName()}
				s.stands[k], s.told[k] = v, v
			}
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

func (b *board) page(ctx context.Context, s *shelf, namespace string, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	ctx, stop := context.WithTimeout(ctx, 3*requestTimeout)
	defer stop()
	return b.Dynamic.Resource(s.gvr).Namespace(namespace).List(ctx, o)
}

// try writes one condition and sends the Event that goes with it.
func (b *board) try(ctx context.Context, t task) {
	object, err := b.bring(ctx, t)
	operation := t.permission("patch", "/status")
	switch {
	case ctx.Err() != nil:
		return
	case apierrors.IsNotFound(err), errors.Is(err, errNewer):
		// Gone, or changed: the source will tell.
		t.stands[t.key] = t.want
		return
	case err != nil:
		t.later[t.key] = time.Now().Add(pause)
		b.once.failed(operation, "condition not written", err, "object", fmt.Sprintf("%s %s/%s", t.kind, t.namespace, t.name))
		if apierrors.IsForbidden(err) {
			t.paused = time.Now().Add(pause)
		}
	default:
		b.once.worked(operation)
		t.want.uid = string(object.UID)
		t.stands[t.key] = t.want
	}
	// Also when the condition cannot be written: then the Event is all that one sees.
	if told, ok := t.told[t.key]; !t.want.accepted && !(ok && told.covers(t.want)) {
		b.events.send(object, warning, reasonPolicyRejected, t.want.message)
	}
	t.told[t.key] = t.want
}

// bring makes the condition stand, where there is a status, and returns the object for Events.
func (b *board) bring(ctx context.Context, t task) (corev1.ObjectReference, error) {
	reference := corev1.ObjectReference{
		APIVersion: t.gvr.GroupVersion().String(), Kind: t.kind,
		Namespace: t.namespace, Name: t.name, UID: types.UID(t.want.uid),
	}
	if !t.hasStatus && t.want.uid != "" {
		return reference, nil
	}
	const attempts = 3 // Istio writes to the same status
	for attempt := 1; ; attempt++ {
		o, err := b.read(ctx, t)
		if err != nil {
			return reference, err
		}
		reference.UID = o.GetUID()
		if !t.hasStatus {
			return reference, nil
		}
		err = b.patch(ctx, t, o)
		if !apierrors.IsConflict(err) || attempt == attempts {
			return reference, err
		}
	}
}
