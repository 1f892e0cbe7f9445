package istio

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

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

// ClientHandshake implements credentials.TransportCredentials. What it returns reaches the log as text, so it says
// what to look at.
func (t *transport) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.tls().ClientHandshake(ctx, authority, c)
	var stranger x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &stranger):
		err = fmt.Errorf("%w (the CA's own certificate leads to none of the %d roots of %s: is that file of this CA?)",
			err, len(t.roots.current()), t.roots.file)
	case errors.As(err, &name):
		err = fmt.Errorf("%w (the CA is expected to be %s: is the address right, or is another server name to be set?)", err, t.name)
	}
	return conn, info, err
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

// withToken adds what says who asks. The token is read each time, because the kubelet replaces it.
func withToken(ctx context.Context, file, cluster string) (context.Context, error) {
	text, err := readFile(file, maxTokenBytes)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return nil, fmt.Errorf("token: %s is empty", file)
	}
	ctx = metadata.AppendToOutgoingContext(ctx, wire.AuthorizationKey, wire.BearerPrefix+string(text))
	if cluster != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, wire.ClusterKey, cluster)
	}
	return ctx, nil
}

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
