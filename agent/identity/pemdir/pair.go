package pemdir

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
)

// The names of kubernetes.io/tls.
const (
	certFile = "tls.crt"
	keyFile  = "tls.key"
)

const (
	maxChainBytes = 64 << 10
	maxKeyBytes   = 16 << 10
)

// read reads a certificate and its key, and looks at them as a peer would. The key belongs to the caller.
func (f *Folder) read(dir string, want spiffeid.ID) (*identity.SVID, error) {
	for _, folder := range []string{f.dir, filepath.Dir(dir), dir} {
		if err := checkFolder(folder); err != nil {
			return nil, err
		}
	}
	chain, err := readCertificates(filepath.Join(dir, certFile), maxChainBytes)
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	svid, err := f.fit(chain, key, want)
	if err != nil {
		identity.Wipe(key)
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, certFile), err)
	}
	return svid, nil
}

func (f *Folder) fit(chain []*x509.Certificate, key crypto.Signer, want spiffeid.ID) (*identity.SVID, error) {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(chain[0].PublicKey) {
		return nil, errors.New("is for another key than " + keyFile + ": one of the two was replaced without the other, or the leaf does not come first")
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return nil, fmt.Errorf("leaf: %w", err)
	}
	svid := &identity.SVID{SVID: x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}}
	bundles := f.Bundles()
	if bundles[0].Empty() {
		return nil, errors.New("cannot be verified: there are no roots in " + filepath.Join(f.dir, ownRoots) + " yet")
	}
	if err := svidcheck.Check(&svid.SVID, want, bundles[0], time.Now()); err != nil {
		return nil, err
	}
	for _, b := range bundles[1:] {
		svid.FederatesWith = append(svid.FederatesWith, b.TrustDomain())
	}
	return svid, nil
}

func readCertificates(path string, most int64) ([]*x509.Certificate, error) {
	text, err := readFile(path, most, writable)
	if err != nil {
		return nil, err
	}
	certs, err := ca.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

func readKey(path string) (crypto.Signer, error) {
	text, err := readFile(path, maxKeyBytes, writable|readable)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func parseKey(text []byte) (crypto.Signer, error) {
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("is empty, or holds no PEM key")
		}
		defer clear(block.Bytes)
		var key any
		var err error
		switch {
		case block.Type == "EC PARAMETERS": // openssl writes them before the key
			continue
		case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errors.New("is encrypted; want a key without a passphrase")
		case block.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			return nil, fmt.Errorf(`holds a %q; want a "PRIVATE KEY" (PKCS #8) or an "EC PRIVATE KEY" (SEC 1)`, block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a %T cannot sign", key)
		}
		return signer, nil
	}
}

// same reports whether nothing changed that the holder of a has to know. That includes the key, which is the one in the
// leaf.
func same(a, b *identity.SVID) bool {
	return a != nil && slices.Equal(a.FederatesWith, b.FederatesWith) &&
		slices.EqualFunc(a.Certificates, b.Certificates, func(x, y *x509.Certificate) bool { return bytes.Equal(x.Raw, y.Raw) })
}
