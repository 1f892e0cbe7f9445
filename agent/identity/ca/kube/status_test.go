package kube

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

func TestStatusHasNoKey(t *testing.T) {
	client := fake.NewSimpleClientset()
	if err := rotor(client, short()).catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := Rotate(t.Context(), FromInterface(client), namespace, RotateRootNote, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	s, err := ReadStatus(t.Context(), FromInterface(client), namespace)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "PRIVATE") || s.Kind != "culvert" || s.Phase != rotation.Stable || len(s.Roots) != 1 ||
		s.Next.Action != rotation.Begin || s.Next.Why != "a new root was asked for" {
		t.Fatalf("%s", text)
	}
}

func TestOperatorsCACannotBeRotated(t *testing.T) {
	root := catest.Root(t, "corporate root")
	client := fake.NewSimpleClientset(secret(ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t), Roots: catest.CertPEM(root)}))
	if err := Rotate(t.Context(), FromInterface(client), namespace, RotateRootNote, time.Now()); !errors.Is(err, ErrNotOurs) {
		t.Fatalf("error %v", err)
	}
	s, err := ReadStatus(t.Context(), FromInterface(client), namespace)
	if err != nil || s.Kind != "operator" || s.Next != nil || len(s.Roots) != 1 || s.Intermediate.Subject != "CN=corporate root" {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestAnnotationThatIsNoTimeIsSaidAndCountsForNothing(t *testing.T) {
	client := fake.NewSimpleClientset()
	r := rotor(client, short())
	if err := r.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := get(t, client, RootSecretName)
	note(s, RotateRootNote, "please")
	if err := r.update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := r.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	status, err := ReadStatus(t.Context(), FromInterface(client), namespace)
	if err != nil || !strings.Contains(status.Problem, RotateRootNote) || status.Phase != rotation.Stable {
		t.Fatalf("%+v, %v", status, err)
	}
	if !strings.Contains(r.said, "please") {
		t.Errorf("said %q", r.said)
	}
}
