package tunnel

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestFirstSVIDIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, "cluster.local")
		const id = "spiffe://cluster.local/ns/shop/sa/cart"
		s := identitiesOf(t, "cluster.local", nil)
		await := func() (took time.Duration) {
			began := time.Now()
			s.await(t.Context(), spiffeid.RequireFromString(id))
			return time.Since(began)
		}
		if took := await(); took != svidPatience {
			t.Fatalf("waited %s for nothing, want %s", took, svidPatience)
		}
		const delay = 40 * time.Millisecond
		go func() {
			time.Sleep(delay / 2)
			s.take(t, a.svid(t, "spiffe://cluster.local/ns/shop/sa/till", time.Now().Add(time.Hour)))
			time.Sleep(delay / 2)
			s.take(t, a.svid(t, id, time.Now().Add(time.Hour)))
		}()
		if took := await(); took != delay {
			t.Fatalf("waited %s, want %s", took, delay)
		}
		if took := await(); took != 0 {
			t.Fatalf("waited %s for what is there", took)
		}
	})
}
