package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

const (
	minLook  = 100 * time.Millisecond
	maxLook  = 5 * time.Second
	maxSteps = 8 // without a pause: none of them brings about another that often
)

// Rotor makes a CA's root and intermediate, and replaces them in time. It runs in the leader. Two at once, because one
// has not noticed yet that it no longer leads, do no harm: each write is of what was read, or is refused.
type Rotor struct {
	client    kubernetes.Interface
	namespace string
	domain    spiffeid.TrustDomain
	policy    rotation.Policy
	log       *slog.Logger
	metrics   *Metrics

	loaded    func() bool // whether this process signs already
	publisher publisher
	now       func() time.Time // by the clock on the wall

	waiting waiting
	said    string // about what is the operator's, or cannot be read
	saidAt  time.Time
	lost    atomic.Pointer[string] // what Lost returns
}

// publisher brings a bundle to those who verify. It gets what was just read from the API server, and nothing older:
// nobody who has learned of a new root is to forget it again.
type publisher interface {
	Publish(bundle string)
	Published(bundle string) bool // whether agents can read it
}

// waiting counts the time for which the bundle has been as it is, by a clock that cannot be set.
type waiting struct {
	since time.Time // which bundle
	last  time.Time
	spent time.Duration // not yet in the Secret
}

// NewRotor returns a Rotor of the Secrets in namespace.
func NewRotor(c *Client, namespace string, td spiffeid.TrustDomain, p rotation.Policy, loaded func() bool, d publisher, m *Metrics, log *slog.Logger) *Rotor {
	return &Rotor{client: c.api, namespace: namespace, domain: td, policy: p, loaded: loaded, publisher: d,
		now: time.Now, metrics: m, log: log}
}

// Run does what is to be done until ctx ends.
func (r *Rotor) Run(ctx context.Context) {
	r.waiting = waiting{} // what passed while another led, that one has counted
	tick := time.NewTicker(min(max(r.policy.Overlap/10, minLook), maxLook))
	defer tick.Stop()
	defer r.metrics.setPhase("", time.Time{}, 0)
	defer r.lose("")
	for {
		if err := r.catchUp(ctx); err != nil && ctx.Err() == nil {
			r.metrics.rotationFailures.Inc()
			r.complain("failed; trying again: " + err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// catchUp takes all steps that are due.
func (r *Rotor) catchUp(ctx context.Context) error {
	for range maxSteps {
		more, err := r.step(ctx)
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			continue // somebody else wrote: look again
		}
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// step reads both Secrets and writes at most one. more is whether it did.
func (r *Rotor) step(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	k, err := r.read(ctx)
	if err != nil {
		return false, err
	}
	r.publish(k)
	if k.badNote != nil {
		r.complain("not understood, and counts for nothing: " + k.badNote.Error())
	}
	lost, err := r.whatIsLost(ctx, k.kind())
	if r.lose(lost); err != nil || lost != "" {
		return false, err
	}
	switch k.kind() {
	case none:
		return true, r.makeRoot(ctx)
	case earlier:
		return true, r.takeOver(ctx, k)
	case operator:
		r.complain("the CA is the operator's: nothing is rotated here")
		return false, nil
	}
	return r.rotate(ctx, k)
}

// publish offers the bundle of what signs, if it can sign: replicas do not take up anything else.
func (r *Rotor) publish(k *keyring) {
	if k.signSecret == nil {
		return
	}
	if a, err := ca.Load(r.domain, material(k.signSecret)); err == nil {
		r.publisher.Publish(string(ca.EncodeCertificates(a.Roots())))
	}
}

func (r *Rotor) read(ctx context.Context) (*keyring, error) {
	secrets := r.client.CoreV1().Secrets(r.namespace)
	get := func(name string) (*core.Secret, error) {
		s, err := secrets.Get(ctx, name, meta.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("secret %s/%s (get secrets): %w", r.namespace, name, err)
		}
		return s, nil
	}
	root, err := get(RootSecretName)
	if err != nil {
		return nil, err
	}
	sign, err := get(SecretName)
	if err != nil {
		return nil, err
	}
	return readKeyring(root, sign)
}

// rotate does what the policy says of a CA that was made here.
func (r *Rotor) rotate(ctx context.Context, k *keyring) (more bool, err error) {
	if k.badNote == nil {
		r.said = ""
	}
	policy := r.policy
	policy.SVID = max(policy.SVID, k.recorded.SVID)
	if k.recorded != policy {
		return true, r.writeRoot(ctx, k, func(s *core.Secret) error { record(s, policy); return nil })
	}
	r.metrics.setPhase(k.phase, k.since, policy.Wait(k.phase))
	spent := r.wait(k)
	now := r.now()
	state := k.state(now)
	state.Waited += spent
	next := policy.Next(state, now)
	if !next.Due(now) {
		return false, r.keepWaiting(ctx, k, policy)
	}
	if err := r.act(ctx, k, next, policy); err != nil {
		return false, fmt.Errorf("%s (%s): %w", next.Action, next.Why, err)
	}
	r.metrics.rotations.WithLabelValues(string(next.Action)).Inc()
	return true, nil
}

func (r *Rotor) act(ctx context.Context, k *keyring, next rotation.Step, policy rotation.Policy) error {
	r.log.Info("CA rotation", "action", string(next.Action), "why", next.Why, "phase", string(k.phase),
		"root", ca.Fingerprint(k.root.Certificate()))
	switch next.Action {
	case rotation.Sign:
		return r.sign(ctx, k, policy)
	case rotation.Begin:
		return r.begin(ctx, k, policy)
	case rotation.Switch:
		if !live(k.next.Certificate(), r.now()) { // made while the clock was wrong, or long ago
			return r.begin(ctx, k, policy)
		}
		return r.writeRoot(ctx, k, func(s *core.Secret) error {
			note(s, phaseNote, string(rotation.Retire))
			s.Data[oldCertName] = s.Data[ca.RootsName]
			s.Data[ca.RootsName], s.Data[rootKeyName] = s.Data[nextCertName], s.Data[nextKeyName]
			delete(s.Data, nextCertName)
			delete(s.Data, nextKeyName)
			if k.asked[0].Before(r.now().Add(time.Second)) {
				// Who asked while the next root was announced already gets this one, and not one more.
				delete(s.Annotations, RotateRootNote)
			}
			return nil
		})
	case rotation.Drop:
		return r.writeRoot(ctx, k, func(s *core.Secret) error {
			note(s, phaseNote, string(rotation.Stable))
			delete(s.Data, oldCertName)
			return nil
		})
	}
	return fmt.Errorf("action %q is not known", next.Action)
}

// begin makes the next root.
func (r *Rotor) begin(ctx context.Context, k *keyring, policy rotation.Policy) error {
	root, err := ca.NewRoot(r.domain, policy.Root)
	if err != nil {
		return err
	}
	return r.writeRoot(ctx, k, func(s *core.Secret) (err error) {
		note(s, phaseNote, string(rotation.Announce))
		s.Data[nextCertName], s.Data[nextKeyName], err = root.PEM()
		return err
	})
}

// wait returns how long the bundle has been published as it is, beyond what the Secret says. Time in which it was not
// published does not count, nor does a leader's that is no more.
func (r *Rotor) wait(k *keyring) time.Duration {
	now := time.Now()
	if w := &r.waiting; w.last.IsZero() || !w.since.Equal(k.since) {
		*w = waiting{since: k.since}
	} else if r.publisher.Published(string(ca.EncodeCertificates(k.bundle))) {
		w.spent += now.Sub(w.last)
	}
	r.waiting.last = now
	return r.waiting.spent
}

// keepWaiting writes down how long a phase has lasted, now and then, so that a new leader need not begin anew.
func (r *Rotor) keepWaiting(ctx context.Context, k *keyring, policy rotation.Policy) error {
	whole := policy.Wait(k.phase)
	if whole == 0 || r.waiting.spent < whole/8 || k.waited >= whole {
		return nil
	}
	changed := k.signSecret.DeepCopy()
	note(changed, waitedNote, (k.waited + r.waiting.spent).Round(time.Millisecond).String())
	if err := r.update(ctx, changed); err != nil {
		return err
	}
	r.waiting.spent = 0
	return nil
}

// complain logs, and not the same again and again.
func (r *Rotor) complain(message string) {
	if r.said == message {
		return
	}
	r.said = message
	r.log.Warn("CA rotation: "+message, "namespace", r.namespace)
}

func record(s *core.Secret, p rotation.Policy) {
	note(s, rootLifeNote, p.Root.String())
	note(s, intermediateLifeNote, p.Intermediate.String())
	note(s, overlapNote, p.Overlap.String())
	note(s, svidLifeNote, p.SVID.String())
}
