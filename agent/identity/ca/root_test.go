package ca_test

import (
	"bytes"
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

func TestRootSurvivesBeingWritten(t *testing.T) {
	root, err := ca.NewRoot(domain(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := root.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ca.ParseRoot(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	m, err := again.Intermediate(domain(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Load(domain(), m)
	if err != nil || !a.Roots()[0].Equal(root.Certificate()) {
		t.Fatalf("%v, %v", a, err)
	}
	if c := a.Certificate(); !c.MaxPathLenZero || c.MaxPathLen != 0 || c.KeyUsage&x509.KeyUsageDigitalSignature != 0 {
		t.Errorf("the intermediate may do more than certify leaves: %+v", c)
	}
	other, err := ca.NewRoot(domain(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(other.Certificate().RawSubject, root.Certificate().RawSubject) {
		t.Error("two roots have the same name")
	}
	if _, err := ca.ParseRoot(ca.EncodeCertificates([]*x509.Certificate{other.Certificate()}), key); err == nil {
		t.Error("another root's key was taken")
	}
}

func TestIntermediateNeverOutlivesItsRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root, err := ca.NewRoot(domain(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Minute)
		m, err := root.Intermediate(domain(), 30*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := ca.ParseCertificates(m.Cert)
		if err != nil {
			t.Fatal(err)
		}
		if !certs[0].NotAfter.Equal(root.Certificate().NotAfter) || !ca.Made(certs[0]).Equal(time.Now()) {
			t.Fatalf("lives from %s to %s", ca.Made(certs[0]), certs[0].NotAfter)
		}
	})
}
