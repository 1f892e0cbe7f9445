// Package limit limits how often something may be done, for each of many keys by itself and within a bound of memory.
package limit

import (
	"maps"
	"sync"
	"time"
)

const maxKeys = 16384

// Keyed is a token bucket for each key. Safe for concurrent use.
type Keyed struct {
	rate  float64 // per second
	burst float64

	mu  sync.Mutex
	all map[string]*bucket
}

// bucket has so many tokens at a time.
type bucket struct {
	tokens float64
	at     time.Time
}

// New returns a Keyed that gives each key so much.
func New(perSecond float64, burst int) *Keyed {
	return &Keyed{rate: perSecond, burst: float64(burst), all: map[string]*bucket{}}
}

// Allow takes one of the key's share and reports whether there was one.
func (l *Keyed) Allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	b := l.all[key]
	if b == nil {
		l.makeRoom(now)
		b = &bucket{l.burst, now}
		l.all[key] = b
	}
	*b = bucket{l.tokens(b, now), now}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// GiveBack returns what Allow took for something that was not done, or is not to be counted.
func (l *Keyed) GiveBack(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.all[key]; b != nil {
		b.tokens = min(b.tokens+1, l.burst)
	}
}

// Untouched reports whether the key has its full share.
func (l *Keyed) Untouched(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.all[key]
	return b == nil || l.tokens(b, time.Now()) >= l.burst
}

func (l *Keyed) tokens(b *bucket, now time.Time) float64 {
	return min(b.tokens+now.Sub(b.at).Seconds()*l.rate, l.burst)
}

// makeRoom forgets those that are back at their full share, as a new one is, and if that does not suffice, whatever
// comes first.
func (l *Keyed) makeRoom(now time.Time) {
	if len(l.all) < maxKeys {
		return
	}
	maps.DeleteFunc(l.all, func(_ string, b *bucket) bool { return l.tokens(b, now) >= l.burst })
	for key := range l.all {
		if len(l.all) < maxKeys {
			return
		}
		delete(l.all, key)
	}
}
