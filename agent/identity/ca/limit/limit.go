// Package limit limits how often something may be done, for each of many keys by itself and within a bound of memory.
package limit

import (
	"maps"
	"sync"

	"golang.org/x/time/rate"
)

const maxKeys = 16384

// Keyed is a token bucket for each key. Safe for concurrent use.
type Keyed struct {
	rate  rate.Limit
	burst int

	mu  sync.Mutex
	all map[string]*rate.Limiter
}

// New returns a Keyed that gives each key so much.
func New(perSecond float64, burst int) *Keyed {
	return &Keyed{rate: rate.Limit(perSecond), burst: burst, all: map[string]*rate.Limiter{}}
}

// Allow takes one of the key's share and reports whether there was one.
func (l *Keyed) Allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.all[key]
	if limiter == nil {
		l.makeRoom()
		limiter = rate.NewLimiter(l.rate, l.burst)
		l.all[key] = limiter
	}
	return limiter.Allow()
}

// Has reports whether Allow would say yes, and takes nothing.
func (l *Keyed) Has(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.all[key]
	return limiter == nil || limiter.Tokens() >= 1
}

// makeRoom forgets those that are back at their full share, as a new one is, and if that does not suffice, whatever
// comes first.
func (l *Keyed) makeRoom() {
	if len(l.all) < maxKeys {
		return
	}
	maps.DeleteFunc(l.all, func(_ string, limiter *rate.Limiter) bool { return limiter.Tokens() >= float64(l.burst) })
	for key := range l.all {
		if len(l.all) < maxKeys {
			return
		}
		delete(l.all, key)
	}
}
