package kube

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

const (
	// bookmarkGrace is how long an open watch may be silent and count as good. API servers send a bookmark every minute.
	bookmarkGrace = 3 * time.Minute
	// logEvery and logBurst bound what a resource whose state flaps writes to the log.
	logEvery = 10 * time.Second
	logBurst = 6
)

// health is how well one resource is followed.
type health struct {
	resource string
	log      *slog.Logger
	failures func(reason string)
	now      func() time.Time
	limit    *rate.Limiter

	mu      sync.Mutex
	open    int       // watches
	synced  bool      // it was read once
	absent  bool      // the API server does not have the resource, and says so
	good    time.Time // when it was last known to be up to date
	failing map[string]string
}

func newHealth(resource string, log *slog.Logger, failures func(reason string)) *health {
	h := &health{
		resource: resource, log: log, failures: failures, now: time.Now,
		limit: rate.NewLimiter(rate.Every(logEvery), logBurst), failing: map[string]string{},
	}
	h.good = h.now()
	return h
}

// stale is for how long the state may have been outdated; zero while it is followed.
func (h *health) stale() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	silent := h.now().Sub(h.good)
	followed := h.synced && (h.absent && h.failing["discover"] == "" || h.open > 0 && silent < bookmarkGrace)
	if followed {
		return 0
	}
	return max(silent, 0)
}

// opened notes that a watch was opened.
func (h *health) opened() {
	h.succeeded("watch")
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open++
	h.markGood()
}

// heard notes an event of a watch.
func (h *health) heard() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.markGood()
}

// closed notes the end of a watch. Until then it was as good as its silence allowed.
func (h *health) closed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	if h.now().Sub(h.good) < bookmarkGrace {
		h.markGood()
	}
}

// read notes that the whole state was taken over.
func (h *health) read() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.synced, h.absent = true, false
	h.good = h.now()
}

// gone notes that the API server confirmed not to have the resource.
func (h *health) gone() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.synced, h.absent = true, true
	h.good = h.now()
}

// markGood does nothing before the first complete state: what is not known cannot be up to date.
func (h *health) markGood() {
	if h.synced {
		h.good = h.now()
	}
}

// failed counts an error, and logs it if it is another one than the last time.
func (h *health) failed(ctx context.Context, verb string, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return // the source is ending
	}
	reason := reasonOf(err)
	h.failures(reason)
	h.mu.Lock()
	changed := h.failing[verb] != reason
	h.failing[verb] = reason
	h.mu.Unlock()
	if !changed || !h.limit.Allow() {
		return
	}
	if reason == "Expired" {
		h.log.Info("API server: the watch was away for too long, reading everything anew", "resource", h.resource)
		return
	}
	message := "API server: the last state stays in force until it answers again"
	switch reason {
	case "Forbidden":
		message = "API server: the agent's role lacks a verb"
	case "Unauthorized":
		message = "API server: the agent's token is not accepted"
	case "NotFound":
		message = "API server: the resource is not served"
	}
	h.log.Error(message, "resource", h.resource, "verb", verb, "reason", reason, "error", err)
}

// succeeded logs that what failed does so no longer.
func (h *health) succeeded(verb string) {
	h.mu.Lock()
	reason, failed := h.failing[verb]
	delete(h.failing, verb)
	h.mu.Unlock()
	if failed && h.limit.Allow() {
		h.log.Info("API server answers again", "resource", h.resource, "verb", verb, "was", reason)
	}
}

// reasonOf sorts errors into a fixed number of kinds.
func reasonOf(err error) string {
	for _, known := range []struct {
		reason string
		is     func(error) bool
	}{
		{"Forbidden", apierrors.IsForbidden},
		{"Unauthorized", apierrors.IsUnauthorized},
		{"TooManyRequests", apierrors.IsTooManyRequests},
		{"Expired", func(err error) bool { return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) }},
		{"NotFound", apierrors.IsNotFound},
		{"ServiceUnavailable", apierrors.IsServiceUnavailable},
		{"Timeout", func(err error) bool {
			return apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || utilnet.IsTimeout(err) ||
				errors.Is(err, context.DeadlineExceeded)
		}},
		{"InternalError", apierrors.IsInternalError},
		{"ConnectionRefused", utilnet.IsConnectionRefused},
		{"ConnectionLost", func(err error) bool {
			return utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err) || utilnet.IsHTTP2ConnectionLost(err) ||
				errors.Is(err, io.ErrUnexpectedEOF)
		}},
	} {
		if known.is(err) {
			return known.reason
		}
	}
	return "Other"
}
