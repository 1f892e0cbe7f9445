package kube

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

// patient is a policy with which nothing but the rotation of the root is due when the clock jumps by hours.
func patient() rotation.Policy {
	return rotation.Policy{Root: 10000 * time.Hour, Intermediate: 1000 * time.Hour, SVID: 10 * time.Second, Overlap: 10 * time.Second}
}

// TestLeaderWhoseClockJumpsDropsNoRootEarly sets the clock on the wall, and lets real seconds pass by another.
func TestLeaderWhoseClockJumpsDropsNoRootEarly(t *testing.T) {
	for _, jump := range []time.Duration{-time.Minute, time.Minute, 9 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := versions(fake.NewSimpleClientset())
				r := rotor(client, patient())
				do := func() *keyring {
					t.Helper()
					if err := r.catchUp(t.Context()); err != nil {
						t.Fatal(err)
					}
					k, err := readKeyring(get(t, client, RootSecretName), get(t, client, SecretName))
					if err != nil {
						t.Fatal(err)
					}
					return k
				}
				do()
				time.Sleep(2 * time.Second)
				if err := Rotate(t.Context(), FromInterface(client), namespace, RotateRootNote, time.Now()); err != nil {
					t.Fatal(err)
				}
				for _, test := range []struct {
					phase rotation.Phase
					lasts time.Duration
				}{{rotation.Announce, patient().Overlap}, {rotation.Retire, patient().Retirement()}} {
					if k := do(); k.phase != test.phase {
						t.Fatalf("in phase %s, want %s", k.phase, test.phase)
					} else if since, wait := testutil.ToFloat64(r.metrics.since), testutil.ToFloat64(r.metrics.wait); since != float64(k.since.Unix()) || wait != test.lasts.Seconds() {
						t.Errorf("metrics say %s since %v for %v s, want %v and %v s", k.phase, since, wait, k.since.Unix(), test.lasts.Seconds())
					}
					for passed := time.Duration(0); passed < test.lasts-time.Second; passed += time.Second {
						time.Sleep(time.Second)
						r.now = func() time.Time { return time.Now().Add(jump) } // set between two looks
						if k := do(); k.phase != test.phase {
							t.Fatalf("left phase %s after %s instead of %s", test.phase, passed, test.lasts)
						}
					}
					r.now = time.Now
					time.Sleep(2 * time.Second)
				}
				if k := do(); k.phase != rotation.Stable || testutil.ToFloat64(r.metrics.wait) != 0 {
					t.Fatalf("in phase %s after all", k.phase)
				}
			})
		})
	}
}

func TestWaitingBeginsAnewWhenTheClockWasFarAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versions(fake.NewSimpleClientset())
		p := rotation.Policy{Root: 1000 * time.Hour, Intermediate: 100 * time.Hour, SVID: time.Hour, Overlap: time.Hour}
		r := rotor(client, p)
		if err := r.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := get(t, client, SecretName)
		note(s, sinceNote, time.Now().Add(900*time.Hour).Format(time.RFC3339))
		if err := r.update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := r.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		k, err := readKeyring(get(t, client, RootSecretName), get(t, client, SecretName))
		if err != nil || k.since.After(time.Now()) || !k.state(time.Now()).Agrees {
			t.Fatalf("since %s, %v", k.since, err)
		}
		if _, err := ca.Load(domain(), material(k.signSecret)); err != nil {
			t.Fatal(err)
		}
	})
}

// TestTimeInWhichAnotherLedIsCountedOnce has one replica lead, then another, then the first again.
func TestTimeInWhichAnotherLedIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versions(fake.NewSimpleClientset())
		first, second := rotor(client, patient()), rotor(client, patient())
		lead := func(r *Rotor, d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			r.Run(ctx)
		}
		lead(first, time.Second)
		if err := Rotate(t.Context(), FromInterface(client), namespace, RotateRootNote, time.Now()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		lead(first, 500*time.Millisecond)
		// From now on the clock on the wall is no help.
		ahead := func() time.Time { return time.Now().Add(9 * time.Hour) }
		first.now, second.now = ahead, ahead
		lasted := time.Duration(0)
		for turn := 0; get(t, client, RootSecretName).Annotations[phaseNote] == string(rotation.Announce) && turn < 40; turn++ {
			lasted = time.Since(began)
			lead([]*Rotor{first, second}[turn%2], 2*time.Second)
		}
		// It is looked at every two seconds.
		if lasted < patient().Overlap-2*time.Second || lasted > 3*patient().Overlap {
			t.Fatalf("was still announced after %s, want that until %s", lasted, patient().Overlap)
		}
	})
}
