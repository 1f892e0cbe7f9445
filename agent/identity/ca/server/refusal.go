package server

import (
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// class is why a request got no certificate, as metrics and the log name it.
type class string

const (
	unauthenticated class = "unauthenticated"
	badIdentity     class = "identity"
	badCSR          class = "csr"
	notThere        class = "not_on_node"
	elsewhere       class = "address"
	limited         class = "rate_limit"
	unavailable     class = "unavailable"
	internal        class = "internal"
)

func classes() []class {
	return []class{unauthenticated, badIdentity, badCSR, notThere, elsewhere, limited, unavailable, internal}
}

// failure is an error with its class.
type failure struct {
	class class
	err   error
}

func (f failure) Error() string { return string(f.class) + ": " + f.err.Error() }
func (f failure) Unwrap() error { return f.err }

const (
	// Whoever is refused could fill the log.
	refusalsPerSecond = 20
	refusalBurst      = 200
)

// refusals logs refusals, within a bound.
type refusals struct {
	logger     *slog.Logger
	limit      *rate.Limiter
	suppressed atomic.Int64
}

func newRefusals(l *slog.Logger) *refusals {
	return &refusals{logger: l, limit: rate.NewLimiter(refusalsPerSecond, refusalBurst)}
}

// log writes a line and returns the number by which to find it.
func (r *refusals) log(class string, fields ...any) (number string) {
	number = strconv.FormatUint(rand.Uint64(), 36)
	if !r.limit.Allow() {
		r.suppressed.Add(1)
		return number
	}
	fields = append([]any{"refusal", number, "class", class}, fields...)
	if n := r.suppressed.Swap(0); n > 0 {
		fields = append(fields, "suppressed", n)
	}
	r.logger.Warn("certificate refused", fields...)
	return number
}
