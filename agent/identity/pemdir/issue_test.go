package pemdir

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

func TestIssueTakesWhatAPeerWouldAccept(t *testing.T) {
	tests := map[string]struct {
		files  func(f tree)
		length int
	}{
		"PKCS #8": {func(f tree) { f.put(f.pair()) }, 1},
		"SEC 1, with openssl's parameters before it": {func(f tree) {
			key := catest.Key(f.t)
			der, err := x509.MarshalECPrivateKey(key)
			if err != nil {
				f.t.Fatal(err)
			}
			p := f.pair()
			p.cert = pemOf("CERTIFICATE", f.root.Leaf(f.t, &key.PublicKey, named("spiffe://cluster.local/ns/shop/sa/cart")).Raw)
			p.key = append(pemOf("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), pemOf("EC PRIVATE KEY", der)...)
			f.put(p)
		}, 1},
		"a chain": {func(f tree) {
			middle := f.root.Intermediate(f.t, "middle")
			p := f.pairBy(middle)
			p.cert = append(p.cert, catest.CertPEM(middle)...)
			f.put(p)
		}, 2},
		"links into another folder, as certbot makes them": {func(f tree) {
			archive := filepath.Join(f.t.TempDir(), "archive")
			f.putIn(archive, f.pair())
			for _, name := range []string{certFile, keyFile} {
				if err := os.Symlink(filepath.Join(archive, name), filepath.Join(f.cart, name)); err != nil {
					f.t.Fatal(err)
				}
			}
		}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newTree(t)
			tt.files(f)
			folder := f.open()
			defer folder.Close()
			svid, err := folder.Issue(t.Context(), workload())
			if err != nil {
				t.Fatal(err)
			}
			if svid.ID != workload().ID || len(svid.Certificates) != tt.length {
				t.Errorf("SVID %s with %d certificates, want %d", svid.ID, len(svid.Certificates), tt.length)
			}
			key, ok := svid.PrivateKey.(*ecdsa.PrivateKey)
			if !ok || !key.PublicKey.Equal(svid.Certificates[0].PublicKey) {
				t.Fatalf("key %T does not fit", svid.PrivateKey)
			}
			if _, err := key.Bytes(); err != nil {
				t.Errorf("key was wiped before it was handed out: %v", err)
			}
		})
	}
}

func TestIssueRefusesAndSaysWhy(t *testing.T) {
	chmod := func(name string, mode os.FileMode) func(tree) {
		return func(f tree) {
			f.put(f.pair())
			if err := os.Chmod(filepath.Join(f.dir, name), mode); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	const cert, key = "shop/cart/tls.crt", "shop/cart/tls.key"
	tests := map[string]struct {
		files func(f tree)
		want  string
	}{
		"nothing there":                        {func(tree) {}, "want tls.crt and tls.key in"},
		"a key that the group may read":        {chmod(key, 0o640), "mode 0640 lets others than its owner read it; make it 0600"},
		"a key that others may read and write": {chmod(key, 0o606), "mode 0606 lets others than its owner read and write it; make it 0600"},
		"a certificate that others may write":  {chmod(cert, 0o646), "mode 0646 lets others than its owner write it; make it 0644"},
		"a folder that others may write into":  {chmod("shop", 0o777), "mode 0777 lets others than its owner write into it; make it 0755"},
		"a key of another user": {func(f tree) {
			f.put(f.pair())
			if err := os.Chown(filepath.Join(f.dir, key), 65534, 65534); err != nil {
				f.t.Fatal(err)
			}
		}, "belongs to user 65534; want root"},
		"the certificate of another identity": {func(f tree) {
			f.put(f.pair(named("spiffe://cluster.local/ns/shop/sa/till")))
		}, "is for spiffe://cluster.local/ns/shop/sa/till"},
		"the certificate of another trust domain": {func(f tree) {
			f.put(f.pair(named("spiffe://elsewhere/ns/shop/sa/cart")))
		}, "is for spiffe://elsewhere/ns/shop/sa/cart"},
		"a certificate without an identity": {func(f tree) {
			f.put(f.pair(func(c *x509.Certificate) { c.URIs = nil }))
		}, "leaf: "},
		"an expired certificate": {func(f tree) {
			f.put(f.pair(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))
		}, "expired at"},
		"a certificate of another authority": {func(f tree) { f.put(f.pairBy(catest.Root(f.t, "stranger"))) }, "does not verify"},
		"a chain without its intermediate":   {func(f tree) { f.put(f.pairBy(f.root.Intermediate(f.t, "middle"))) }, "does not verify"},
		"a key that does not fit": {func(f tree) {
			p := f.pair()
			p.key = f.pair().key
			f.put(p)
		}, "one of the two was replaced without the other"},
		"a chain in the wrong order": {func(f tree) {
			middle := f.root.Intermediate(f.t, "middle")
			p := f.pairBy(middle)
			p.cert = append(catest.CertPEM(middle), p.cert...)
			f.put(p)
		}, "the leaf does not come first"},
		"an encrypted key": {func(f tree) {
			p := f.pair()
			p.key = bytes.ReplaceAll(p.key, []byte("PRIVATE KEY"), []byte("ENCRYPTED PRIVATE KEY"))
			f.put(p)
		}, "without a passphrase"},
		"a key among the certificates": {func(f tree) {
			p := f.pair()
			p.cert = append(p.cert, p.key...)
			f.put(p)
		}, `holds a "PRIVATE KEY" where only certificates belong`},
		"half a key": {func(f tree) {
			p := f.pair()
			p.key = p.key[:len(p.key)/2]
			f.put(p)
		}, "holds no PEM key"},
		"a file without an end": {func(f tree) {
			p := f.pair()
			p.cert = append(p.cert, bytes.Repeat([]byte("#"), maxChainBytes)...)
			f.put(p)
		}, "is larger than 65536 bytes"},
		"a named pipe": {func(f tree) {
			if err := syscall.Mkfifo(filepath.Join(f.dir, cert), 0o600); err != nil {
				f.t.Fatal(err)
			}
		}, "is not a regular file"},
		"no roots": {func(f tree) {
			f.put(f.pair())
			if err := os.Remove(filepath.Join(f.dir, ownRoots)); err != nil {
				f.t.Fatal(err)
			}
		}, "there are no roots in"},
		"roots that others may write": {chmod(ownRoots, 0o666), "there are no roots in"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newTree(t)
				tt.files(f)
				folder := f.open()
				defer folder.Close()
				svid, err := folder.Issue(t.Context(), workload())
				if err == nil {
					t.Fatalf("SVID %s", svid.ID)
				}
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %q, want %q in it", err, tt.want)
				}
			})
		})
	}
}

func TestWhatIsNotThereIsAnErrorAtOnce(t *testing.T) {
	folder := newTree(t).open()
	defer folder.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := folder.Issue(ctx, workload()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestNamesNeverLeadOutOfTheFolder(t *testing.T) {
	f := newTree(t)
	folder := f.open()
	defer folder.Close()
	for _, path := range []string{
		"/", "/ns/shop", "/ns/shop/sa", "/ns/shop/sa/cart/more", "/ns/shop/xx/cart", "/ns/Shop/sa/cart", "/ns/shop/sa/CART",
		"/ns/a.b/sa/cart", "/ns/-a/sa/cart", "/ns/shop/sa/.hidden", "/ns/shop/sa/a..b", "/ns/shop/sa/a_b",
		"/ns/" + strings.Repeat("a", 64) + "/sa/cart", "/ns/shop/sa/" + strings.Repeat("a.", 126) + "aa",
	} {
		id, err := spiffeid.FromPath(domain(), strings.TrimSuffix(path, "/"))
		if err != nil {
			continue // go-spiffe has no such ID
		}
		if _, err := folder.Issue(t.Context(), identity.Workload{ID: id}); err == nil || !strings.Contains(err.Error(), "with names of Kubernetes") {
			t.Errorf("%s: %v", path, err)
		}
	}
	other := spiffeid.RequireFromString("spiffe://elsewhere/ns/shop/sa/cart")
	if _, err := folder.Issue(t.Context(), identity.Workload{ID: other}); err == nil || !strings.Contains(err.Error(), "not of the trust domain") {
		t.Errorf("foreign identity: %v", err)
	}
	if dir, err := folder.folderOf(spiffeid.RequireFromPath(domain(), "/ns/shop/sa/v1.cart")); err != nil || dir != filepath.Join(f.dir, "shop", "v1.cart") {
		t.Errorf("account with a dot: %s, %v", dir, err)
	}
}

func TestNewWantsAFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, file + "-missing"} {
		if _, err := New(Options{Dir: dir, TrustDomain: domain()}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
