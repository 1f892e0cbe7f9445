package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// The files in the certificates' folder. Both ends use one identity.
const (
	chainFile  = "chain.pem"
	keyFile    = "key.pem"
	bundleFile = "bundle.pem"
)

func identity() (spiffeid.TrustDomain, spiffeid.ID) {
	td := spiffeid.RequireTrustDomainFromString("bench.local")
	return td, spiffeid.RequireFromPath(td, "/ns/default/sa/bench")
}

func writeCertificates(dir string) error {
	td, id := identity()
	authority, err := ca.New(td)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	chain, err := authority.Sign(id, key.Public(), 24*time.Hour)
	if err != nil {
		return err
	}
	var chainPEM []byte
	for _, c := range chain {
		chainPEM = append(chainPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	bundlePEM, err := authority.Bundle().Marshal()
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	for name, content := range map[string][]byte{
		chainFile:  chainPEM,
		keyFile:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		bundleFile: bundlePEM,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
	}
	return nil
}

func readCertificates(dir string) (*x509svid.SVID, *x509bundle.Bundle, error) {
	svid, err := x509svid.Load(filepath.Join(dir, chainFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, nil, err
	}
	td, _ := identity()
	bundle, err := x509bundle.Load(td, filepath.Join(dir, bundleFile))
	if err != nil {
		return nil, nil, err
	}
	return svid, bundle, nil
}

func clientTLS(dir string) (*tls.Config, error) {
	svid, bundle, err := readCertificates(dir)
	if err != nil {
		return nil, err
	}
	_, id := identity()
	config := hbone.BaseTLSConfig(false)
	tlsconfig.HookMTLSClientConfig(config, svid, bundle, tlsconfig.AuthorizeID(id))
	return config, nil
}

func serverTLS(dir string) (*tls.Config, error) {
	svid, bundle, err := readCertificates(dir)
	if err != nil {
		return nil, err
	}
	_, id := identity()
	config := hbone.BaseTLSConfig(false)
	tlsconfig.HookMTLSServerConfig(config, svid, bundle, tlsconfig.AuthorizeID(id))
	return config, nil
}
