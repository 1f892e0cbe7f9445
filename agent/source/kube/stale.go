package kube

import (
	"fmt"
	"time"
)

// Stale says which resources are not followed up to date now, and for how long they have not been. It may be called at
// any time.
func (s *Source) Stale() []string {
	var all []string
	for _, j := range s.jobs {
		if since := j.feed.health.stale(); since > 0 {
			all = append(all, fmt.Sprintf("%s: not up to date for %s%s", j.feed.health.resource, since.Round(time.Second), j.feed.health.why()))
		}
	}
	return all
}

// why names what fails, if anything does.
func (h *health) why() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, verb := range [...]string{"discover", "list", "watch"} {
		if reason := h.failing[verb]; reason != "" {
			return fmt.Sprintf(" (%s: %s)", verb, reason)
		}
	}
	return ""
}
