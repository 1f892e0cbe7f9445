package pemdir

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

func domain() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("cluster.local") }

func workload() identity.Workload {
	return identity.Workload{ID: spiffeid.RequireFromPath(domain(), "/ns/shop/sa/cart"), Namespace: "shop", ServiceAccount: "cart"}
}

// tree is a folder of PEM files.
type tree struct {
	t    testing.TB
	dir  string // of all
	cart string // of the workload's files
	root *catest.CA
}

func newTree(t testing.TB) tree {
	t.Helper()
	dir := t.TempDir()
	f := tree{t: t, dir: dir, cart: filepath.Join(dir, "shop", "cart"), root: catest.Root(t, "root")}
	f.mkdir(f.cart)
	f.write(filepath.Join(dir, ownRoots), catest.CertPEM(f.root), 0o644)
	return f
}

func (f tree) mkdir(dir string) {
	f.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// write writes over what is there, whatever the umask.
func (f tree) write(path string, text []byte, mode os.FileMode) {
	f.t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f tree) rename(from, to string) {
	f.t.Helper()
	if err := os.Rename(from, to); err != nil {
		f.t.Fatal(err)
	}
}

// pair is a certificate and its key, as text.
type pair struct {
	leaf      *x509.Certificate
	cert, key []byte
}

func (f tree) pair(alter ...func(*x509.Certificate)) pair { return f.pairBy(f.root, alter...) }

func (f tree) pairBy(by *catest.CA, alter ...func(*x509.Certificate)) pair {
	f.t.Helper()
	key := catest.Key(f.t)
	leaf := by.Leaf(f.t, &key.PublicKey, append([]func(*x509.Certificate){named("spiffe://cluster.local/ns/shop/sa/cart")}, alter...)...)
	return pair{leaf, pemOf("CERTIFICATE", leaf.Raw), pkcs8(f.t, key)}
}

func pkcs8(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func named(id string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		u, err := url.Parse(id)
		if err != nil {
			panic(err)
		}
		c.URIs = []*url.URL{u}
	}
}

func (f tree) put(p pair) { f.putIn(f.cart, p) }

func (f tree) putIn(dir string, p pair) {
	f.t.Helper()
	f.mkdir(dir)
	f.write(filepath.Join(dir, certFile), p.cert, 0o644)
	f.write(filepath.Join(dir, keyFile), p.key, 0o600)
}

func (f tree) open() *Folder {
	f.t.Helper()
	folder, err := New(Options{Dir: f.dir, TrustDomain: domain(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.t.Fatal(err)
	}
	return folder
}
