package kube

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

const (
	maxAnswers = 8192
	// A token that is revoked (its pod deleted) is honoured for that long.
	keepAnswer = 45 * time.Second
	// A token may be refused because the API server has not heard of its pod yet.
	keepRefusal = 2 * time.Second
)

// answer is what a review of a token said: who holds it, or why nobody is proved to.
type answer struct {
	caller  ca.Caller
	refusal error
}

// answers remembers reviews by the hash of the token, which itself is nowhere kept. Those who ask for the same token
// at the same time wait for one review.
type answers struct {
	mu      sync.Mutex
	known   map[[sha256.Size]byte]remembered
	pending map[[sha256.Size]byte]chan struct{} // closed when a review ends, whether it brought an answer or not
	now     func() time.Time
}

type remembered struct {
	answer
	until time.Time
}

func newAnswers() *answers {
	return &answers{known: map[[sha256.Size]byte]remembered{}, pending: map[[sha256.Size]byte]chan struct{}{}, now: time.Now}
}

// get returns the answer that is remembered, or that of review, which runs in the caller's goroutine.
func (s *answers) get(ctx context.Context, token string, review func() (answer, error)) (answer, error) {
	key := sha256.Sum256([]byte(token))
	for {
		a, wait, found := s.lookup(key)
		switch {
		case found:
			return a, nil
		case wait == nil: // ours to ask
			a, err := review()
			s.finish(key, a, err, expiry(token))
			return a, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return answer{}, fmt.Errorf("token review: %w: %w", ctx.Err(), ca.ErrUnavailable)
		}
	}
}

// lookup returns the answer, or what to wait for; if neither, the caller has to review and then call finish.
func (s *answers) lookup(key [sha256.Size]byte) (_ answer, wait <-chan struct{}, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.known[key]; ok && s.now().Before(r.until) {
		return r.answer, nil, true
	}
	if pending := s.pending[key]; pending != nil {
		return answer{}, pending, false
	}
	s.pending[key] = make(chan struct{})
	return answer{}, nil, false
}

func (s *answers) finish(key [sha256.Size]byte, a answer, err error, expiry time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.pending[key])
	delete(s.pending, key)
	if err != nil {
		return
	}
	now := s.now()
	until := now.Add(keepAnswer)
	if a.refusal != nil {
		until = now.Add(keepRefusal)
	}
	if !expiry.IsZero() && expiry.Before(until) && a.refusal == nil {
		until = expiry
	}
	s.makeRoom(now)
	s.known[key] = remembered{a, until}
}

// makeRoom forgets what is old, and if that does not suffice, whatever comes first.
func (s *answers) makeRoom(now time.Time) {
	if len(s.known) < maxAnswers {
		return
	}
	maps.DeleteFunc(s.known, func(_ [sha256.Size]byte, r remembered) bool { return !now.Before(r.until) })
	for key := range s.known {
		if len(s.known) < maxAnswers {
			return
		}
		delete(s.known, key)
	}
}

// expiry reads when a token expires. Nobody has checked it yet, but it only ever shortens how long an answer is
// remembered. Zero if there is none.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Expiry float64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Expiry <= 0 || claims.Expiry > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Expiry), 0)
}
