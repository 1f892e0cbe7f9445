package limit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestEachKeyHasItsShareAndWhatIsGivenBackDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(2, 3)
		take := func(key string) (n int) {
			for l.Allow(key) {
				n++
			}
			return n
		}
		if n := take("a"); n != 3 {
			t.Errorf("%d at once, want 3", n)
		}
		if l.Untouched("a") || !l.Untouched("b") || take("b") != 3 {
			t.Error("one key's share is another's")
		}
		l.GiveBack("a")
		if n := take("a"); n != 1 {
			t.Errorf("%d after one was given back", n)
		}
		time.Sleep(time.Second)
		if n := take("a"); n != 2 {
			t.Errorf("%d after a second, want 2", n)
		}
		time.Sleep(time.Hour)
		l.GiveBack("a")
		if !l.Untouched("a") || take("a") != 3 {
			t.Error("more or less than a share after an hour")
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	l := New(1e-9, 1)
	for i := range maxKeys + 100 {
		l.Allow(fmt.Sprint(i))
	}
	if len(l.all) > maxKeys {
		t.Fatalf("%d keys", len(l.all))
	}
}
