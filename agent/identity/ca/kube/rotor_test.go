package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

func domain() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("cluster.local") }

// short is a policy whose root goes through all phases in minutes.
func short() rotation.Policy {
	return rotation.Policy{Root: 4 * time.Minute, Intermediate: time.Minute, SVID: 10 * time.Second, Overlap: 10 * time.Second}
}

// believed is a publisher of which everything is believed to be published at once.
type believed struct{}

func (believed) Publish(string)        {}
func (believed) Published(string) bool { return true }

func rotor(client kubernetes.Interface, p rotation.Policy) *Rotor {
	return NewRotor(FromInterface(client), namespace, domain(), p, func() bool { return false }, believed{}, NewMetrics(), slog.New(slog.DiscardHandler))
}

// versions makes a fake API server refuse what is not of the newest version, as a real one does.
func versions(client *fake.Clientset) *fake.Clientset {
	var mu sync.Mutex
	newest := map[string]int{}
	client.PrependReactor("create", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		s := a.(clienttesting.CreateAction).GetObject().(*core.Secret)
		if newest[s.Name] == 0 {
			newest[s.Name] = 1
			s.ResourceVersion = "1"
		}
		return false, nil, nil
	})
	client.PrependReactor("update", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		s := a.(clienttesting.UpdateAction).GetObject().(*core.Secret)
		if s.ResourceVersion != fmt.Sprint(newest[s.Name]) {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, s.Name, errors.New("is newer"))
		}
		newest[s.Name]++
		s.ResourceVersion = fmt.Sprint(newest[s.Name])
		return false, nil, nil
	})
	return client
}

func get(t testing.TB, client kubernetes.Interface, name string) *core.Secret {
	t.Helper()
	s, err := client.CoreV1().Secrets(namespace).Get(context.Background(), name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReplicasThatStartAtOnceMakeOneRoot(t *testing.T) {
	client := versions(fake.NewSimpleClientset())
	// Those who look first find nothing, whatever was written meanwhile.
	const replicas = 8
	var looked atomic.Int32
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if looked.Add(1) <= 2*replicas {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, SecretName)
		}
		return false, nil, nil
	})
	var wg sync.WaitGroup
	for range replicas {
		wg.Go(func() {
			if err := rotor(client, short()).catchUp(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	creations := map[string]int{}
	for _, a := range client.Actions() {
		if a.GetVerb() == "update" {
			t.Error("one of them wrote over what another made")
		}
	}
	k, err := readKeyring(get(t, client, RootSecretName), get(t, client, SecretName))
	if err != nil || k.kind() != own || !k.state(time.Now()).Agrees {
		t.Fatalf("%v, %v; creations %v", k, err, creations)
	}
	s := store(client)
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := s.Authority(); len(a.Roots()) != 1 || a.Certificate().Equal(a.Roots()[0]) {
		t.Fatalf("signs with %s below %d roots", a.Certificate().Subject, len(a.Roots()))
	}
}

func TestOperatorsCAIsNeverWritten(t *testing.T) {
	root, other := catest.Root(t, "corporate root"), catest.Root(t, "Culvert root of another cluster")
	middle := root.Intermediate(t, "mesh")
	operators := secret(ca.Material{Cert: catest.CertPEM(middle), Key: middle.KeyPEM(t), Roots: catest.CertPEM(root)})
	labelled := secret(ca.Material{Cert: catest.CertPEM(middle), Key: middle.KeyPEM(t), Roots: catest.CertPEM(root)})
	labelled.Labels = map[string]string{managedBy: "culvert"}
	selfSigned := secret(ca.Material{Cert: catest.CertPEM(other), Key: other.KeyPEM(t), Roots: catest.CertPEM(other)})
	made := fake.NewSimpleClientset()
	if err := rotor(made, short()).catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		objects []runtime.Object
	}{
		{"as it is", []runtime.Object{operators}},
		{"with Culvert's label", []runtime.Object{labelled}},
		{"self-signed, of that name", []runtime.Object{selfSigned}},
		{"in the place of one that Culvert made", []runtime.Object{operators, get(t, made, RootSecretName)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			client := fake.NewSimpleClientset(test.objects...)
			if err := rotor(client, short()).catchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, a := range client.Actions() {
				if a.GetVerb() != "get" {
					t.Errorf("%s of %s", a.GetVerb(), a.GetResource().Resource)
				}
			}
		})
	}
}

func TestRootOfAnEarlierCulvertIsTakenOver(t *testing.T) {
	m, err := ca.Generate(domain())
	if err != nil {
		t.Fatal(err)
	}
	earlierSecret := secret(m)
	earlierSecret.Labels = map[string]string{managedBy: "culvert"}
	client := fake.NewSimpleClientset(earlierSecret)
	before := store(client)
	if err := before.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := rotor(client, short()).catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := store(client)
	if err := after.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !after.Authority().Roots()[0].Equal(before.Authority().Roots()[0]) || after.Authority().Certificate().Equal(before.Authority().Certificate()) {
		t.Fatal("want the same root, and an intermediate below it")
	}
}

func TestDeletedSecrets(t *testing.T) {
	client := fake.NewSimpleClientset()
	r := rotor(client, short())
	if err := r.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	root := get(t, client, RootSecretName).Data[ca.RootsName]
	remove := func(name string) {
		t.Helper()
		if err := client.CoreV1().Secrets(namespace).Delete(t.Context(), name, meta.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := r.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	remove(SecretName)
	if s := get(t, client, SecretName); s == nil || string(s.Data[ca.RootsName]) != string(root) {
		t.Fatal("what signs is not made again below the same root")
	}
	r.loaded = func() bool { return true }
	remove(RootSecretName)
	if get(t, client, RootSecretName) != nil {
		t.Fatal("a root was made although another signs")
	}
	remove(SecretName)
	if get(t, client, RootSecretName) != nil {
		t.Fatal("a root was made by a replica that has one")
	}
}

func TestBrokenSecretOfTheRootIsLeftAlone(t *testing.T) {
	for _, spoil := range []func(*core.Secret){
		func(s *core.Secret) { s.Data[rootKeyName] = []byte("secret garbage") },
		func(s *core.Secret) { s.Annotations[phaseNote] = "unheard of" },
		func(s *core.Secret) { s.Annotations[phaseNote] = string(rotation.Announce) },
		func(s *core.Secret) { s.Annotations[phaseNote] = string(rotation.Retire) },
	} {
		client := fake.NewSimpleClientset()
		r := rotor(client, short())
		if err := r.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := get(t, client, RootSecretName)
		spoil(s)
		if _, err := client.CoreV1().Secrets(namespace).Update(t.Context(), s, meta.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		client.ClearActions()
		if err := r.catchUp(t.Context()); err == nil {
			t.Error("no error")
		}
		for _, a := range client.Actions() {
			if a.GetVerb() != "get" {
				t.Errorf("%s of %s", a.GetVerb(), a.GetResource().Resource)
			}
		}
	}
}

// TestNoHandshakeFailsThroughTwoLivesOfARoot lets leaders die after each single write, and starts another some time
// later. A replica hears of what signs seconds late.
func TestNoHandshakeFailsThroughTwoLivesOfARoot(t *testing.T) {
	for _, diesAfter := range []int{0, 1, 2, 3} { // writes; 0: never
		t.Run(fmt.Sprintf("leader dies after %d writes", diesAfter), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { liveThrough(t, diesAfter) })
		})
	}
}

func liveThrough(t *testing.T, diesAfter int) {
	client := versions(fake.NewSimpleClientset())
	lead := func() (stop func(), died <-chan struct{}) {
		ctx, cancel := context.WithCancel(t.Context())
		var writes atomic.Int32
		mortal := &dying{Interface: client, die: func() bool { return diesAfter > 0 && int(writes.Add(1)) > diesAfter }, cancel: cancel}
		ended := make(chan struct{})
		go func() { defer close(ended); rotor(mortal, short()).Run(ctx) }()
		return func() { cancel(); <-ended }, ctx.Done()
	}
	stop, died := lead()
	synctest.Wait()
	const lag = 2 * time.Second // of a replica, and of the new leader
	var m Mesh
	var replica *ca.Authority
	roots := map[string]bool{}
	phases := map[string]bool{}
	for begin, heard := time.Now(), (*core.Secret)(nil); time.Since(begin) < 2*short().Root; time.Sleep(500 * time.Millisecond) {
		select {
		case <-died:
			stop()
			time.Sleep(lag)
			stop, died = lead()
			synctest.Wait()
		default:
		}
		now := get(t, client, SecretName)
		if now == nil {
			continue
		}
		if replica == nil || time.Since(begin)%lag == 0 {
			if heard == nil {
				heard = now
			}
			s := store(client)
			var err error
			if replica, err = s.read(heard); err != nil {
				t.Fatal(err)
			}
			heard = now
		}
		m.Publish(t, now.Data[ca.RootsName])
		chain, err := replica.Sign(spiffeid.RequireFromPath(domain(), "/ns/a/sa/b"), &catest.Key(t).PublicKey, short().SVID)
		if err != nil {
			t.Fatal(err)
		}
		m.Issue(chain)
		rootSecret := get(t, client, RootSecretName)
		roots[string(rootSecret.Data[ca.RootsName])] = true
		phases[rootSecret.Annotations[phaseNote]] = true
	}
	stop()
	if len(roots) < 3 || len(phases) != 3 {
		t.Fatalf("%d roots and phases %v seen, want at least 3 roots in all phases", len(roots), phases)
	}
	m.Check(t, short().Overlap)
}
