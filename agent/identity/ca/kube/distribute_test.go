package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

// distributing starts a Distributor of a CA with one root.
func distributing(t *testing.T, client kubernetes.Interface) (*Distributor, *Store) {
	t.Helper()
	d := NewDistributor(FromInterface(client), namespace, NewMetrics(), slog.New(slog.DiscardHandler))
	s := store(client)
	give(t, s, d)
	background(t, func(ctx context.Context) error { d.Run(ctx); return nil })
	return d, s
}

// give puts another authority in force and has its roots published.
func give(t *testing.T, s *Store, d *Distributor) {
	t.Helper()
	root := catest.Root(t, "root")
	a, err := ca.Load(domain(), ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t), Roots: catest.CertPEM(root)})
	if err != nil {
		t.Fatal(err)
	}
	s.set(a)
	d.Publish(roots(s))
}

func bundleIn(t *testing.T, client kubernetes.Interface, namespace string) string {
	t.Helper()
	m, err := client.CoreV1().ConfigMaps(namespace).Get(t.Context(), ConfigMapName, meta.GetOptions{})
	if err != nil {
		return ""
	}
	return m.Data[ca.RootsName]
}

func roots(s *Store) string { return string(ca.EncodeCertificates(s.Authority().Roots())) }

func space(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: name}}, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestBundleIsInEveryNamespaceAndRepaired(t *testing.T) {
	checkDistribution(t, fake.NewSimpleClientset())
}

func checkDistribution(t *testing.T, client kubernetes.Interface) {
	role, err := client.RbacV1().ClusterRoles().Create(t.Context(), &rbac.ClusterRole{
		ObjectMeta: meta.ObjectMeta{Name: ClusterRoleName, UID: "uid-of-the-role"}}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{namespace, "shop"} {
		if _, err := client.CoreV1().Namespaces().Get(t.Context(), name, meta.GetOptions{}); apierrors.IsNotFound(err) {
			space(t, client, name)
		}
	}
	d, s := distributing(t, client)
	holds := func(namespace string) {
		t.Helper()
		eventually(t, func() bool { return bundleIn(t, client, namespace) == roots(s) })
	}
	holds(namespace)
	holds("shop")
	eventually(t, func() bool { return d.Published(roots(s)) })
	space(t, client, "new")
	holds("new")
	maps := client.CoreV1().ConfigMaps("shop")
	m, err := maps.Get(t.Context(), ConfigMapName, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.OwnerReferences) != 1 || m.OwnerReferences[0].UID != role.UID || m.OwnerReferences[0].Kind != "ClusterRole" {
		t.Errorf("belongs to %+v", m.OwnerReferences)
	}
	m.Data = map[string]string{ca.RootsName: "tampered", "other": "left alone"}
	if _, err = maps.Update(t.Context(), m, meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	holds("shop")
	if m, err = maps.Get(t.Context(), ConfigMapName, meta.GetOptions{}); err != nil || m.Data["other"] != "left alone" {
		t.Fatalf("another key of the ConfigMap: %q, %v", m.Data["other"], err)
	}
	if err := maps.Delete(t.Context(), ConfigMapName, meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	holds("shop")
	old := roots(s)
	give(t, s, d)
	for _, name := range []string{namespace, "shop", "new"} {
		holds(name)
	}
	eventually(t, func() bool { return d.Published(roots(s)) })
	if d.Published(old) {
		t.Error("says that the old bundle is published")
	}
}

func TestTerminatingNamespacesAreLeftAlone(t *testing.T) {
	now := meta.Now()
	client := fake.NewSimpleClientset(
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: namespace}},
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "marked", DeletionTimestamp: &now, Finalizers: []string{"x/y"}}},
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "ending"}, Status: core.NamespaceStatus{Phase: core.NamespaceTerminating}},
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "just-ending"}},
	)
	var tried atomic.Int32
	client.PrependReactor("create", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetNamespace() != "just-ending" {
			return false, nil, nil
		}
		tried.Add(1)
		err := apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, ConfigMapName, errors.New("is being terminated"))
		err.ErrStatus.Details.Causes = []meta.StatusCause{{Type: core.NamespaceTerminatingCause}}
		return true, nil, err
	})
	d, s := distributing(t, client)
	eventually(t, func() bool { return bundleIn(t, client, namespace) == roots(s) && tried.Load() > 0 })
	time.Sleep(4 * minWriteRetry)
	if n := tried.Load(); n != 1 {
		t.Errorf("tried %d times in a namespace that ends", n)
	}
	for _, name := range []string{"marked", "ending"} {
		if bundleIn(t, client, name) != "" {
			t.Errorf("namespace %s was written", name)
		}
	}
	if !d.Published(roots(s)) {
		t.Error("namespaces that end keep the bundle from being published")
	}
}

func TestWritesThatFailAreTriedAgainWithinBounds(t *testing.T) {
	client := fake.NewSimpleClientset(&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: namespace}},
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "denied"}})
	var tried atomic.Int32
	client.PrependReactor("create", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetNamespace() == "denied" && tried.Add(1) <= 3 {
			return true, nil, errors.New("admission webhook denied the request")
		}
		return false, nil, nil
	})
	_, s := distributing(t, client)
	eventually(t, func() bool { return bundleIn(t, client, namespace) == roots(s) })
	eventually(t, func() bool { return bundleIn(t, client, "denied") == roots(s) })
	if n := tried.Load(); n != 4 {
		t.Errorf("tried %d times, want 4", n)
	}
}

func TestAHundredNamespacesAndNothingElseIsRead(t *testing.T) {
	client := fake.NewSimpleClientset(&core.ConfigMap{ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: "other", UID: types.UID("x")}})
	space(t, client, namespace)
	d, s := distributing(t, client)
	eventually(t, func() bool { return d.Published(roots(s)) })
	for i := range 100 {
		space(t, client, fmt.Sprint("n", i))
	}
	eventually(t, func() bool {
		current, pending := d.copies.count(roots(s))
		return current == 101 && pending == 0
	})
	for _, a := range client.Actions() {
		if l, ok := a.(clienttesting.ListAction); ok && a.GetResource().Resource == "configmaps" &&
			!strings.Contains(l.GetListRestrictions().Fields.String(), "metadata.name="+ConfigMapName) {
			t.Errorf("lists ConfigMaps by %q", l.GetListRestrictions().Fields)
		}
		if slices.Contains([]string{"update", "delete"}, a.GetVerb()) {
			t.Errorf("%s of %s", a.GetVerb(), a.GetResource().Resource)
		}
	}
}
