package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxCSRBytes = 16 << 10
	maxRSABits  = 4096 // verifying larger ones is work that a client can make us do
)

// CheckCSR reads a certificate request and returns the key to certify. All else in the certificate is the CA's
// decision, as with Istio's; but a request that asks for more than id is refused, because whoever wrote it
// believed that it would get it. No name at all is as good as id: some of Istio's clients leave it away.
func CheckCSR(text []byte, id spiffeid.ID) (crypto.PublicKey, error) {
	csr, err := parseCSR(text)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	if err := checkSubject(csr.RawSubject); err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	for _, e := range csr.Extensions {
		if err := checkExtension(e, id); err != nil {
			return nil, fmt.Errorf("CSR: %w", err)
		}
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("CSR: its signature: %w", err)
	}
	return csr.PublicKey, nil
}

func parseCSR(text []byte) (*x509.CertificateRequest, error) {
	if len(text) > maxCSRBytes {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(text), maxCSRBytes)
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("is not PEM")
	case block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST":
		return nil, fmt.Errorf("is a %q", block.Type)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("is followed by something else")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

// checkKey allows the keys that every TLS implementation of a mesh can verify; Ed25519 is not among them.
func checkKey(pub any) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("ECDSA key on curve %s, want P-256 or P-384", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
		}
		return checkRSA(k, maxRSABits)
	default:
		return fmt.Errorf("key of type %T, want ECDSA or RSA", pub)
	}
}

// checkSubject allows no name in the subject. Istio's sidecar agent sends an empty organization.
func checkSubject(raw []byte) error {
	var subject pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &subject); err != nil || len(rest) > 0 {
		return errors.New("its subject cannot be read")
	}
	for _, set := range subject {
		for _, attribute := range set {
			if value, ok := attribute.Value.(string); !ok || value != "" {
				return fmt.Errorf("asks for a subject (%q)", subject.String())
			}
		}
	}
	return nil
}

// checkExtension refuses what would be dangerous if it were granted. What else is asked for is not granted.
func checkExtension(e pkix.Extension, id spiffeid.ID) error {
	switch {
	case e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}): // subjectAltName
		return checkNames(e.Value, id)
	case e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 19}): // basicConstraints
		var constraints struct {
			IsCA       bool `asn1:"optional"`
			MaxPathLen int  `asn1:"optional,default:-1"`
		}
		if rest, err := asn1.Unmarshal(e.Value, &constraints); err != nil || len(rest) > 0 {
			return errors.New("its basicConstraints cannot be read")
		}
		if constraints.IsCA {
			return errors.New("asks to be a CA")
		}
	case e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 15}): // keyUsage
		var usage asn1.BitString
		if rest, err := asn1.Unmarshal(e.Value, &usage); err != nil || len(rest) > 0 {
			return errors.New("its keyUsage cannot be read")
		}
		const keyCertSign, crlSign = 5, 6
		if usage.At(keyCertSign) == 1 || usage.At(crlSign) == 1 {
			return errors.New("asks for the key usage of a CA")
		}
	}
	return nil
}

// checkNames wants exactly one name: the URI of id. It reads the names itself because the parser of crypto/x509
// leaves out the kinds that it does not know.
func checkNames(raw []byte, id spiffeid.ID) error {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(raw, &names); err != nil || len(rest) > 0 {
		return errors.New("its subjectAltName cannot be read")
	}
	const uri = 6
	switch {
	case len(names) == 0:
		return nil
	case len(names) > 1:
		return fmt.Errorf("asks for %d names, want one", len(names))
	case names[0].Class != asn1.ClassContextSpecific || names[0].Tag != uri:
		return fmt.Errorf("asks for a name of kind %d that is no URI", names[0].Tag)
	case string(names[0].Bytes) != id.String():
		return fmt.Errorf("asks for %q, but the request is for %s", names[0].Bytes, id)
	}
	return nil
}
