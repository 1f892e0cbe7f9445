package kube

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
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
)

const namespace = "culvert-system"

func store(client kubernetes.Interface) *Store {
	return NewStore(FromInterface(client), namespace, spiffeid.RequireTrustDomainFromString("cluster.local"), slog.New(slog.DiscardHandler))
}

func secret(m ca.Material) *core.Secret {
	return &core.Secret{ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: SecretName, ResourceVersion: "1"},
		Data: map[string][]byte{ca.CertName: m.Cert, ca.KeyName: m.Key, ca.ChainName: m.Chain, ca.RootsName: m.Roots}}
}

func TestOperatorsIntermediateIsUsed(t *testing.T) {
	root := catest.Root(t, "corporate root")
	middle := root.Intermediate(t, "mesh")
	s := store(fake.NewSimpleClientset(secret(ca.Material{Cert: catest.CertPEM(middle), Key: middle.KeyPEM(t),
		Chain: catest.CertPEM(middle, root), Roots: catest.CertPEM(root)})))
	if err := s.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := s.Authority(); !got.Certificate().Equal(middle.Cert) || !got.Roots()[0].Equal(root.Cert) {
		t.Fatalf("signs with %s below %s", got.Certificate().Subject, got.Roots()[0].Subject)
	}
}

func TestBrokenSecretIsRefusedAndLeftAlone(t *testing.T) {
	root, other := catest.Root(t, "root"), catest.Root(t, "other")
	tests := []struct {
		name     string
		material ca.Material
		want     string
	}{
		{"empty", ca.Material{}, "ca-cert.pem: is missing"},
		{"key of another", ca.Material{Cert: catest.CertPEM(root), Key: other.KeyPEM(t), Roots: catest.CertPEM(root)}, "do not go together"},
		{"root missing", ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t)}, "root-cert.pem: is missing"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			client := fake.NewSimpleClientset(secret(test.material))
			err := store(client).Load(context.Background())
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), namespace+"/"+SecretName) {
				t.Fatalf("error %v, want %q in it and the Secret's name", err, test.want)
			}
			for _, a := range client.Actions() {
				if a.GetVerb() != "get" {
					t.Errorf("%s of %s", a.GetVerb(), a.GetResource().Resource)
				}
			}
		})
	}
}

// forgetful returns a Store that finds something only at the fourth look.
func forgetful(t *testing.T, log io.Writer) *Store {
	root := catest.Root(t, "root")
	good := secret(ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t), Roots: catest.CertPEM(root)})
	spoilt := good.DeepCopy() // as an intermediate that expired while the cluster was off: its leader makes another
	spoilt.Labels, spoilt.Data[ca.CertName] = map[string]string{managedBy: "culvert"}, nil
	client := fake.NewSimpleClientset()
	var asked atomic.Int32
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		resource := schema.GroupResource{Resource: "secrets"}
		switch asked.Add(1) {
		case 1:
			return true, nil, apierrors.NewForbidden(resource, SecretName, errors.New("no RBAC"))
		case 2:
			return true, nil, apierrors.NewNotFound(resource, SecretName)
		case 3:
			return true, spoilt, nil
		}
		return true, good, nil
	})
	return NewStore(FromInterface(client), namespace, domain(), slog.New(slog.NewTextHandler(log, nil)))
}

func TestLoadWaitsForTheAPIServerAndForTheLeader(t *testing.T) {
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		if err := forgetful(t, &log).Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	for _, want := range []string{"(get secrets)", "waiting for the leader", "ca-cert.pem: is missing"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log has no %q: %s", want, &log)
		}
	}
	if strings.Contains(log.String(), "PRIVATE") {
		t.Errorf("log has the key: %s", &log)
	}
}

// following starts a Store's Run with a CA that signs.
func following(t *testing.T, client kubernetes.Interface) *Store {
	t.Helper()
	root := catest.Root(t, "first root")
	o := secret(ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t), Roots: catest.CertPEM(root)})
	o.ResourceVersion = ""
	if _, err := client.CoreV1().Secrets(namespace).Create(t.Context(), o, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := store(client)
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	background(t, s.Run)
	return s
}

// background runs f until the test ends.
func background(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestChangedSecretIsTakenUpUnlessItIsBroken(t *testing.T) {
	checkSecretChange(t, fake.NewSimpleClientset())
}

func checkSecretChange(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	s := following(t, client)
	first := s.Authority()
	secrets := client.CoreV1().Secrets(namespace)
	alter := func(f func(*core.Secret)) {
		t.Helper()
		o, err := secrets.Get(context.Background(), SecretName, meta.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f(o)
		if _, ok := client.(*fake.Clientset); ok { // which counts no versions
			o.ResourceVersion += "1"
		}
		if _, err := secrets.Update(context.Background(), o, meta.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	alter(func(o *core.Secret) { o.Data[ca.KeyName] = []byte("broken") })
	changed := s.Changed()
	root := catest.Root(t, "new root")
	alter(func(o *core.Secret) {
		o.Data = secret(ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t),
			Roots: append(catest.CertPEM(root), ca.EncodeCertificates(first.Roots())...)}).Data
	})
	<-changed // only now: the broken one changed nothing
	if !s.Authority().Certificate().Equal(root.Cert) || len(s.Authority().Roots()) != 2 {
		t.Fatalf("signs with %s, %d roots", s.Authority().Certificate().Subject, len(s.Authority().Roots()))
	}
	taken, changed := s.Authority(), s.Changed()
	if err := secrets.Delete(context.Background(), SecretName, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
		t.Fatal("a deleted Secret changed the authority")
	case <-time.After(200 * time.Millisecond):
	}
	if !s.Authority().Equal(taken) {
		t.Fatal("a deleted Secret changed the authority")
	}
}
