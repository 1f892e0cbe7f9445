package kube

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

func TestSecretFromTheFutureIsTakenUpOnceItIsValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := catest.Root(t, "root")
		future := root.Intermediate(t, "made by a leader whose clock is ahead", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(10 * time.Second) })
		s := store(fake.NewSimpleClientset())
		o := secret(ca.Material{Cert: catest.CertPEM(future), Key: future.KeyPEM(t), Chain: catest.CertPEM(future), Roots: catest.CertPEM(root)})
		taken := s.takeUp(o, "")
		if s.Authority() != nil {
			t.Fatal("taken up before it is valid")
		}
		time.Sleep(lookAgain)
		if s.takeUp(o, taken); s.Authority() == nil {
			t.Fatal("never looked at again")
		}
	})
}

func TestOnlyAChangeThatIsNoRotationIsAWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versions(fake.NewSimpleClientset())
		r := rotor(client, patient())
		caughtUp(t, client, r)
		var log bytes.Buffer
		s := NewStore(FromInterface(client), namespace, domain(), slog.New(slog.NewTextHandler(&log, nil)))
		if err := s.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, phase := range []rotation.Phase{rotation.Announce, rotation.Retire, rotation.Stable} {
			if phase == rotation.Announce {
				rotateTo(t, client, r, phase)
			}
			for caughtUp(t, client, r).phase != phase {
				time.Sleep(time.Second)
			}
			s.takeUp(get(t, client, SecretName), "")
		}
		if n := strings.Count(log.String(), `level=INFO msg="CA changed`); n != 3 {
			t.Errorf("%d changes told, want 3:\n%s", n, &log)
		}
		other := catest.Root(t, "somebody else's")
		s.takeUp(secret(ca.Material{Cert: catest.CertPEM(other), Key: other.KeyPEM(t), Roots: catest.CertPEM(other)}), "")
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings, want one:\n%s", n, &log)
		}
	})
}
