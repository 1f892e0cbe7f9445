package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/identity"
)

// remembering is a CA that keeps the keys that it gave out, which nobody else is to.
type remembering struct {
	*identity.InProcess
	mu   sync.Mutex
	keys [][]byte // PKCS #8
	bare [][]byte // the number alone
}

func (r *remembering) Issue(ctx context.Context, w identity.Workload) (*identity.SVID, error) {
	svid, err := r.InProcess.Issue(ctx, w)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		return nil, err
	}
	secret, ok := svid.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is of another kind")
	}
	number, err := secret.Bytes()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys, r.bare = append(r.keys, key), append(r.bare, number)
	return svid, nil
}

// TestWhatAReportHasIsNoSecret looks for the keys of SVIDs in all that a report is made of.
func TestWhatAReportHasIsNoSecret(t *testing.T) {
	issuer := &remembering{InProcess: newCounting(t).InProcess}
	a, i := answeringBy(t, cluster(), issuer)
	a.observer = newObserver(a, "")
	answers := map[string]func() (any, error){
		"state":        func() (any, error) { return a.observer.Bugreport(t.Context()) },
		"certificates": func() (any, error) { return i.Certificates(t.Context()) },
		"flows":        func() (any, error) { return a.observer.Flows(t.Context(), 0, 0) },
		"readiness":    func() (any, error) { return a.observer.Readiness(t.Context(), "", time.Hour) },
	}
	issuer.mu.Lock()
	defer issuer.mu.Unlock()
	if len(issuer.keys) == 0 {
		t.Fatal("nobody has a key")
	}
	for name, ask := range answers {
		answer, err := ask()
		if err != nil {
			t.Fatal(name, err)
		}
		text, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := answer.(*admin.Certificates); ok && len(c.SVIDs[0].Chain) == 0 {
			t.Error("there is no certificate: nothing is proved")
		}
		for n := range issuer.keys {
			for _, key := range [][]byte{issuer.keys[n], issuer.bare[n]} {
				for _, secret := range []string{string(key), base64.StdEncoding.EncodeToString(key)[:40], hex.EncodeToString(key)} {
					if bytes.Contains(bytes.ToLower(text), bytes.ToLower([]byte(secret))) {
						t.Errorf("%s has a private key", name)
					}
				}
			}
		}
		if bytes.Contains(text, []byte("PRIVATE KEY")) {
			t.Errorf("%s has a PEM key", name)
		}
	}
}
