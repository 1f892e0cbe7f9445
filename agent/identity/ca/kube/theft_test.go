package kube_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
)

// resigned is a token of the API server with other times, signed with the API server's own key: nothing is wrong with
// it but these. The API server itself gives none for less than ten minutes.
func (c *cluster) resigned(t *testing.T, token string, from, until time.Duration) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(c.Config("").CAFile), "sa.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	claims["iat"], claims["nbf"] = time.Now().Add(from).Unix(), time.Now().Add(from).Unix()
	claims["exp"] = time.Now().Add(until).Unix()
	if payload, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestExpiredAndStolenTokensWithARealAPIServer(t *testing.T) {
	c := newCluster(t)
	r := c.replica(t, func(o *server.Options) { o.RequireAddress = true })
	r.ready(t)
	roots := c.bundle(t)
	at := func(address string) func(*core.Pod) {
		return func(p *core.Pod) {
			p.Spec.HostNetwork = true
			p.Status = core.PodStatus{Phase: core.PodRunning, HostIP: address, HostIPs: []core.HostIP{{IP: address}},
				PodIP: address, PodIPs: []core.PodIP{{IP: address}}}
		}
	}
	here := c.placed(t, "agent-a", "node-a", at("127.0.0.1"))
	there := c.placed(t, "agent-b", "node-b", at("127.0.0.2"))
	fresh := c.pod(t, system, "agent-c", "culvert-agent", "node-c", onHost) // its kubelet has not reported yet
	for _, node := range []string{"a", "b", "c"} {
		c.pod(t, "shop", "cart-"+node, "cart", "node-"+node)
	}
	token := func(p *core.Pod) string { return c.token(t, "culvert-agent", "culvert-ca", p) }
	mine := token(here)
	tests := []struct {
		name, token, outside, inside string
	}{
		{"token of this node", mine, "", ""},
		{"the same, resigned, still valid", c.resigned(t, mine, -time.Minute, time.Minute), "", ""},
		{"expired", c.resigned(t, mine, -time.Hour, -90*time.Second), "PermissionDenied", "token: not authenticated"},
		{"expired five minutes ago, for a CA whose clock is behind", c.resigned(t, mine, -time.Hour, -5*time.Minute), "PermissionDenied", "token: not authenticated"},
		{"not valid yet", c.resigned(t, mine, 5*time.Minute, time.Hour), "PermissionDenied", "token: not authenticated"},
		{"stolen from another node", token(there), "PermissionDenied", "came from 127.0.0.1, which is not among its addresses [127.0.0.2"},
		{"of an agent whose address is not known yet", token(fresh), "Unavailable", "its address is not known yet"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := client(t, r.service, roots, test.token).Issue(t.Context(), identity.Workload{ID: id("shop", "cart")})
			if test.outside != "" {
				refusedWith(t, err, "code = "+test.outside, r.log, test.inside)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
	if !strings.Contains(r.log.String(), "address_is_pods=yes") {
		t.Error("the audit log does not say that the address is that of the agent's pod")
	}
}

// placed is an agent's pod with a status.
func (c *cluster) placed(t *testing.T, name, node string, alter func(*core.Pod)) *core.Pod {
	t.Helper()
	p := c.pod(t, system, name, "culvert-agent", node, onHost)
	alter(p)
	p, err := c.admin.CoreV1().Pods(system).UpdateStatus(t.Context(), p, meta.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStolenTokenGetsNoMoreThanItsNodesIdentities(t *testing.T) {
	c := newCluster(t)
	r := c.replica(t)
	r.ready(t)
	roots := c.bundle(t)
	there := c.placed(t, "agent-b", "node-b", func(p *core.Pod) {
		p.Status = core.PodStatus{Phase: core.PodRunning, HostIPs: []core.HostIP{{IP: "127.0.0.2"}}, HostIP: "127.0.0.2"}
	})
	c.pod(t, "shop", "cart", "cart", "node-a") // where the thief is
	c.pod(t, "shop", "till", "till", "node-b") // where the token is from
	thief := client(t, r.service, roots, c.token(t, "culvert-agent", "culvert-ca", there))
	_, err := thief.Issue(t.Context(), identity.Workload{ID: id("shop", "cart")})
	refusedWith(t, err, "code = PermissionDenied", r.log, "is on node node-b")
	if _, err := thief.Issue(t.Context(), identity.Workload{ID: id("shop", "till")}); err != nil {
		t.Fatalf("without --require-agent-address, what the node itself gets: %v", err)
	}
	// But whoever reads the log finds the theft.
	eventually(t, func() bool {
		_, err := thief.Issue(t.Context(), identity.Workload{ID: id("shop", "till")})
		return err == nil && strings.Contains(r.log.String(), "address_is_pods=no")
	})
}
