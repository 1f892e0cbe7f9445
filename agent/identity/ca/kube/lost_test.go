package kube

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

// caughtUp has the rotor do what is due, and returns what there is then.
func caughtUp(t *testing.T, client *fake.Clientset, r *Rotor) *keyring {
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

// rotateTo asks for a root and waits for the phase.
func rotateTo(t *testing.T, client *fake.Clientset, r *Rotor, phase rotation.Phase) {
	t.Helper()
	caughtUp(t, client, r)
	time.Sleep(2 * time.Second)
	if err := Rotate(t.Context(), FromInterface(client), namespace, RotateRootNote, time.Now()); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if caughtUp(t, client, r).phase == phase {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("never came to phase %s", phase)
}

func put(t *testing.T, client *fake.Clientset, s *core.Secret) {
	t.Helper()
	if err := client.Tracker().Update(core.SchemeGroupVersion.WithResource("secrets"), s, namespace); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, client *fake.Clientset, name string) {
	t.Helper()
	if err := client.CoreV1().Secrets(namespace).Delete(t.Context(), name, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// late is a publisher that takes some time.
type late struct{ published bool }

func (*late) Publish(string)            {}
func (l *late) Published(b string) bool { return l.published }

func TestLostAnnotationsBeginTheWaitAnew(t *testing.T) {
	for _, sameLeader := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			client := versions(fake.NewSimpleClientset())
			r := rotor(client, patient())
			rotateTo(t, client, r, rotation.Retire)
			time.Sleep(patient().Retirement() - 2*time.Second)
			caughtUp(t, client, r)
			signing := get(t, client, SecretName)
			signing.Annotations = nil
			put(t, client, signing)
			if !sameLeader {
				r = rotor(client, patient())
			}
			publisher := &late{}
			r.publisher = publisher
			if k := caughtUp(t, client, r); !bytes.Equal(k.signSecret.Data[ca.CertName], signing.Data[ca.CertName]) {
				t.Error("the intermediate was replaced for it")
			}
			for passed := time.Duration(0); passed < patient().Retirement(); passed += time.Second {
				k := caughtUp(t, client, r)
				if k.phase != rotation.Retire || len(k.bundle) != 2 || k.since.IsZero() {
					t.Fatalf("after %s: phase %s, %d roots, since %s", passed, k.phase, len(k.bundle), k.since)
				}
				publisher.published = true
				time.Sleep(time.Second)
			}
			for range 3 {
				time.Sleep(time.Second)
				caughtUp(t, client, r)
			}
			if k := caughtUp(t, client, r); k.phase != rotation.Stable {
				t.Fatalf("in phase %s after all", k.phase)
			}
		})
	}
}

func TestWaitedIsNotedWhereThereAreNoAnnotations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versions(fake.NewSimpleClientset())
		r := rotor(client, patient())
		rotateTo(t, client, r, rotation.Retire)
		k := caughtUp(t, client, r)
		k.signSecret.Annotations, k.waited = nil, 0
		r.waiting.spent = patient().Retirement() / 2
		if err := r.keepWaiting(t.Context(), k, patient()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRootSecretThatIsGoneIsSaidAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versions(fake.NewSimpleClientset())
		r := rotor(client, patient())
		var log bytes.Buffer
		r.log = slog.New(slog.NewTextHandler(&log, nil))
		root := caughtUp(t, client, r).rootSecret
		if r.Lost() != "" {
			t.Fatalf("lost: %s", r.Lost())
		}
		remove(t, client, RootSecretName)
		for range 10 * 12 {
			if k := caughtUp(t, client, r); k.kind() != orphan {
				t.Fatalf("kind %s", k.kind())
			}
			time.Sleep(5 * time.Second)
		}
		if !strings.Contains(r.Lost(), RootSecretName) || testutil.ToFloat64(r.metrics.lost) != 1 {
			t.Errorf("lost: %q, metric %v", r.Lost(), testutil.ToFloat64(r.metrics.lost))
		}
		if n := strings.Count(log.String(), "level=ERROR"); n < 9 || n > 11 {
			t.Errorf("%d error lines in ten minutes, want about ten: %s", n, &log)
		}
		root.ResourceVersion = ""
		if err := client.Tracker().Add(root); err != nil {
			t.Fatal(err)
		}
		if k := caughtUp(t, client, r); k.kind() != own || r.Lost() != "" || testutil.ToFloat64(r.metrics.lost) != 0 {
			t.Errorf("restored: kind %s, lost %q", k.kind(), r.Lost())
		}
	})
}

func TestNoNewRootWhileABundleIsPublished(t *testing.T) {
	client := fake.NewSimpleClientset(
		&core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: ConfigMapName}, Data: map[string]string{ca.RootsName: "a root"}},
		&core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: ConfigMapName}, Data: map[string]string{ca.RootsName: "a root"}})
	r := rotor(client, patient())
	if k := caughtUp(t, client, r); k.kind() != none {
		t.Fatalf("a CA of kind %s was made although all trust another root", k.kind())
	}
	if !strings.Contains(r.Lost(), "delete ConfigMap "+ConfigMapName) {
		t.Errorf("not said what to do: %q", r.Lost())
	}
	if err := client.CoreV1().ConfigMaps(namespace).Delete(t.Context(), ConfigMapName, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if k := caughtUp(t, client, r); k.kind() != own || r.Lost() != "" {
		t.Errorf("kind %s, lost %q", k.kind(), r.Lost())
	}
}

func TestClusterThatWasOffWhileThingsExpired(t *testing.T) {
	p := patient()
	for _, test := range []struct {
		name  string
		phase rotation.Phase
		off   time.Duration
	}{
		{"the root", rotation.Stable, p.Root},
		{"the root, announced", rotation.Announce, p.Root},
		{"the root, in retirement", rotation.Retire, p.Root + time.Hour},
		{"the intermediate", rotation.Stable, p.Intermediate},
		{"the intermediate, announced", rotation.Announce, p.Intermediate},
		{"the intermediate, in retirement", rotation.Retire, p.Intermediate},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := versions(fake.NewSimpleClientset())
				r := rotor(client, p)
				if test.phase == rotation.Stable {
					caughtUp(t, client, r)
				} else {
					rotateTo(t, client, r, test.phase)
				}
				time.Sleep(test.off)
				r = rotor(client, p)
				caughtUp(t, client, r)
				if _, err := store(client).read(get(t, client, SecretName)); err != nil {
					t.Fatalf("what signs cannot: %v", err)
				}
			})
		})
	}
}

// TestBundleChangesAfterTheIntermediateExpired has the leader die between the two writes of a step.
func TestBundleChangesAfterTheIntermediateExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versions(fake.NewSimpleClientset())
		r := rotor(client, patient())
		k := caughtUp(t, client, r)
		if err := r.begin(t.Context(), k, patient()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(patient().Intermediate + time.Hour)
		if k = caughtUp(t, client, rotor(client, patient())); len(k.bundle) != 2 || !time.Now().Before(k.signing.NotAfter) {
			t.Fatalf("%d roots, the intermediate expires %s", len(k.bundle), k.signing.NotAfter)
		}
	})
}

func TestThoseWhoSignAreToldTheLongestLife(t *testing.T) {
	client := versions(fake.NewSimpleClientset())
	first := caughtUp(t, client, rotor(client, patient()))
	s := store(client)
	if err := s.Load(t.Context()); err != nil || s.LongestSVID() != patient().SVID {
		t.Fatalf("%v, longest life %s", err, s.LongestSVID())
	}
	longer := patient()
	longer.SVID = time.Hour
	k := caughtUp(t, client, rotor(client, longer))
	if !k.signing.Equal(first.signing) || !k.since.Equal(first.since) {
		t.Error("more was written than the life")
	}
	s.takeUp(k.signSecret, "")
	if s.LongestSVID() != time.Hour {
		t.Errorf("longest life %s", s.LongestSVID())
	}
}

func TestFirstLookCountsNoTime(t *testing.T) {
	if waited := rotor(fake.NewSimpleClientset(), patient()).wait(&keyring{}); waited != 0 {
		t.Errorf("waited %s before the first look", waited)
	}
}
