package istio

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"google.golang.org/grpc/credentials"

	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

// transport is TLS that checks the CA's certificate against the roots of the moment of each handshake.
type transport struct {
	name  string
	roots *roots
}

func newTransport(name string, r *roots) *transport { return &transport{name: name, roots: r} }

func (t *transport) tls() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.name, RootCAs: t.roots.pool()})
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *transport) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.tls().ClientHandshake(ctx, authority, c)
}

// ServerHandshake implements credentials.TransportCredentials.
func (t *transport) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a client")
}

// Info implements credentials.TransportCredentials.
func (t *transport) Info() credentials.ProtocolInfo { return t.tls().Info() }

// Clone implements credentials.TransportCredentials.
func (t *transport) Clone() credentials.TransportCredentials { return newTransport(t.name, t.roots) }

// OverrideServerName implements credentials.TransportCredentials.
func (t *transport) OverrideServerName(name string) error {
	t.name = name
	return nil
}

const maxTokenBytes = 16 << 10

// token goes with each call. It is read each time, because the kubelet replaces it.
type token struct{ file, cluster string }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := readFile(t.file, maxTokenBytes)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return nil, fmt.Errorf("token: %s is empty", t.file)
	}
	md := map[string]string{wire.AuthorizationKey: wire.BearerPrefix + string(text)}
	if t.cluster != "" {
		md[wire.ClusterKey] = t.cluster
	}
	return md, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t token) RequireTransportSecurity() bool { return true }

// readFile reads a file of bounded size.
func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("%s: more than %d bytes", name, most)
	}
	return text, nil
}
