package tunnel

import (
	"context"
	"errors"
	"log/slog"
)

// watchTrust ends the pool's connections to peers that are not trusted any more. The inbound ones watch by themselves.
func (t *tunnel) watchTrust(ctx context.Context) {
	for {
		narrowed := t.ids.narrowed()
		if ended := t.pool.recheck(); ended > 0 {
			t.log.Info("HBONE connections take no more streams: peers no longer trusted", "connections", ended)
		}
		select {
		case <-narrowed:
		case <-ctx.Done():
			return
		}
	}
}

// logUnusable tells of an identity that has no SVID. One that has expired is told of by watchExpiry, which counts.
func (t *tunnel) logUnusable(s *spec, err error) {
	if !errors.Is(err, errExpired) {
		t.noise.log(t.log, slog.LevelError, "no new mTLS connections: certificate missing", "workload", s.name, "error", err)
	}
}
