package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 30 * time.Second
	// maxPatientBackoff is for those whose SVID is good for a long time yet: a CA that is in trouble gets rest.
	maxPatientBackoff = 5 * time.Minute
	longestWait       = 2 * maxPatientBackoff // with jitter; longer only after the clock was set back
	// issueTimeout ends an attempt at an issuer that does not answer.
	issueTimeout = 10 * time.Second
	// maxIssuing bounds the attempts at one time. Identities that have an SVID leave some to those that have none,
	// because a pod waits for it.
	maxIssuing  = 16
	maxRenewing = 12
	// maxNap is how long a sleep may go without a look at the clock, which may be set, or stand still while the
	// machine is suspended.
	maxNap = time.Minute

	// While a CA is away, thousands of identities fail again and again.
	failuresPerSecond = 5
	failureBurst      = 50
)

// issue gets one SVID and puts it in force.
func (k *Keeper) issue(e *entry, w Workload) error {
	ctx, cancel := context.WithTimeout(k.ctx, issueTimeout)
	defer cancel()
	began := time.Now()
	svid, err := k.issuer.Issue(ctx, w)
	if err != nil {
		return err
	}
	return k.store(e, svid, time.Since(began))
}

// store puts an SVID in force and tells of it. took is how long the Issuer needed, if it was asked.
func (k *Keeper) store(e *entry, s *SVID, took time.Duration) error {
	key, err := sealed(s)
	if err != nil {
		return fmt.Errorf("SVID %s: key: %w", e.id, err)
	}
	leaf := s.Certificates[0]
	k.mu.Lock()
	if k.kept[e.id] != e {
		k.mu.Unlock()
		clear(key)
		return nil
	}
	renewal := e.chain != nil
	e.put(k.issuers.shared(s.Certificates), leaf.NotAfter, key, s.FederatesWith)
	if k.watcher == nil {
		e.next = e.obtained.Add(renewIn(leaf.NotAfter, e.obtained))
	}
	next := e.next
	k.mu.Unlock()
	k.log.Debug("SVID issued", "identity", e.id.String(), "serial", leaf.SerialNumber.Text(16),
		"expires", leaf.NotAfter, "renewal", next)
	k.onTried(Attempt{Renewal: renewal, Took: took})
	k.notify(e.id)
	return nil
}

// sealed takes the key out of an SVID.
func sealed(s *SVID) (key []byte, err error) {
	if s.PrivateKey == nil || len(s.Certificates) == 0 {
		return nil, errors.New("SVID without certificate or key")
	}
	defer Wipe(s.PrivateKey)
	return x509.MarshalPKCS8PrivateKey(s.PrivateKey)
}

// failed logs, and forgets an SVID that has expired meanwhile: a new tunnel has no use for it. It returns how long to
// wait: errors back off per identity, so that one that cannot be issued does not hold up the others.
func (k *Keeper) failed(e *entry, err error) time.Duration {
	k.mu.Lock()
	renewal := e.chain != nil
	e.err = err
	now := time.Now().Round(0)
	e.backoff = min(max(2*e.backoff, minBackoff), e.longestBackoff(now))
	wait := jittered(e.backoff)
	e.next = now.Add(wait)
	expired := e.expired(now)
	fields := []any{"identity", e.id.String(), "issuer", k.issuer.String(), "retry_in", wait.String(), "error", err}
	if e.chain != nil {
		fields = append(fields, "old_expires", e.expires)
	}
	if expired {
		e.forget()
	}
	k.mu.Unlock()
	k.onTried(Attempt{Renewal: renewal, Err: err})
	if expired {
		k.log.Error("SVID expired and is not renewed: new connections of its pods are refused", fields...)
		return wait
	}
	if !k.logLimit.Allow() {
		k.suppressed.Add(1)
		return wait
	}
	if n := k.suppressed.Swap(0); n > 0 {
		fields = append(fields, "suppressed", n)
	}
	k.log.Error("SVID not issued", fields...)
	return wait
}

// longestBackoff is a twentieth of the life that is left, within bounds.
func (e *entry) longestBackoff(now time.Time) time.Duration {
	if e.chain == nil {
		return maxBackoff
	}
	return min(max(e.expires.Sub(now)/20, maxBackoff), maxPatientBackoff)
}

func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// renewIn is half of the life that is left, shortened by up to a tenth so that many identities issued at once
// do not come back at once.
func renewIn(expires, now time.Time) time.Duration {
	half := expires.Sub(now) / 2
	if half <= 0 {
		return minBackoff
	}
	return half - time.Duration(rand.Int64N(int64(half)/10+1))
}
