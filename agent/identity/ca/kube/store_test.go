package kube

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

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

func TestReplicasThatStartAtOnceShareOneRoot(t *testing.T) {
	client := fake.NewSimpleClientset()
	// Those who look first find nothing, whatever was written meanwhile.
	const replicas = 8
	var looked atomic.Int32
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if looked.Add(1) <= replicas {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, SecretName)
		}
		return false, nil, nil
	})
	stores := make([]*Store, replicas)
	var wg sync.WaitGroup
	for i := range stores {
		stores[i] = store(client)
		wg.Go(func() {
			if err := stores[i].Load(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range stores[1:] {
		if !s.Authority().Equal(stores[0].Authority()) {
			t.Fatal("two replicas have different roots")
		}
	}
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

func TestLoadWaitsForTheAPIServerAndNamesTheVerb(t *testing.T) {
	client := fake.NewSimpleClientset()
	var asked atomic.Int32
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if asked.Add(1) == 1 {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, SecretName, errors.New("no RBAC"))
		}
		return false, nil, nil
	})
	var log bytes.Buffer
	s := NewStore(FromInterface(client), namespace, spiffeid.RequireTrustDomainFromString("cluster.local"), slog.New(slog.NewTextHandler(&log, nil)))
	if err := s.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "get, create secrets") {
		t.Errorf("log does not name the verbs: %s", &log)
	}
	if strings.Contains(log.String(), "PRIVATE") {
		t.Errorf("log has the key: %s", &log)
	}
}

// running starts a Store's Run and returns what reads the published bundle.
func running(t *testing.T, client kubernetes.Interface) (*Store, func() string) {
	t.Helper()
	s := store(client)
	if err := s.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s, func() string {
		m, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, ConfigMapName, meta.GetOptions{})
		if err != nil {
			return ""
		}
		return m.Data[ca.RootsName]
	}
}

func roots(s *Store) string { return string(ca.EncodeCertificates(s.Authority().Roots())) }

func TestBundleIsPublishedAndRepaired(t *testing.T) {
	checkBundle(t, fake.NewSimpleClientset())
}

func checkBundle(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	s, published := running(t, client)
	eventually(t, func() bool { return published() == roots(s) && s.Published() })
	maps := client.CoreV1().ConfigMaps(namespace)
	m, err := maps.Get(context.Background(), ConfigMapName, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Data[ca.RootsName] = "tampered"
	m.Data["other"] = "left alone"
	if _, err = maps.Update(context.Background(), m, meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return published() == roots(s) })
	if m, err = maps.Get(context.Background(), ConfigMapName, meta.GetOptions{}); err != nil || m.Data["other"] != "left alone" {
		t.Fatalf("another key of the ConfigMap: %q, %v", m.Data["other"], err)
	}
	if err := maps.Delete(context.Background(), ConfigMapName, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return published() == roots(s) })
}

func TestChangedSecretIsTakenUpUnlessItIsBroken(t *testing.T) {
	checkSecretChange(t, fake.NewSimpleClientset())
}

func checkSecretChange(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	s, published := running(t, client)
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
	root := catest.Root(t, "new root")
	eventually(t, func() bool { return published() == roots(s) })
	if !s.Authority().Equal(first) {
		t.Fatal("a broken Secret changed the authority")
	}
	alter(func(o *core.Secret) {
		o.Data = secret(ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t),
			Roots: append(catest.CertPEM(root), ca.EncodeCertificates(first.Roots())...)}).Data
	})
	eventually(t, func() bool { return s.Authority().Certificate().Equal(root.Cert) && published() == roots(s) })
	if len(s.Authority().Roots()) != 2 {
		t.Fatal("the old root is not in the bundle")
	}
	taken := s.Authority()
	if err := secrets.Delete(context.Background(), SecretName, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().ConfigMaps(namespace).Delete(context.Background(), ConfigMapName, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return published() == roots(s) })
	if !s.Authority().Equal(taken) {
		t.Fatal("a deleted Secret changed the authority")
	}
}
