package tunnel

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// svidPatience is how long a connection waits for the first SVID of an identity. A workload is announced before its
// SVID is there, and what it does first may be to connect.
const svidPatience = 3 * time.Second

// await returns when the identity has an SVID, be it expired, or when that takes too long.
func (s *identities) await(ctx context.Context, id spiffeid.ID) {
	arrived, has := s.arrival(id)
	if has {
		return
	}
	patience := time.NewTimer(svidPatience)
	defer patience.Stop()
	for !has {
		select {
		case <-arrived:
		case <-patience.C:
			return
		case <-ctx.Done():
			return
		}
		arrived, has = s.arrival(id)
	}
}

// arrival returns whether there is an SVID, and a channel that is closed when an identity gets its first.
func (s *identities) arrival(id spiffeid.ID) (arrived <-chan struct{}, has bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.arriving, s.svids[id] != nil
}
