package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

const (
	verifyAtOnce  = 4
	verifyTimeout = 10 * time.Second
	verifyChain   = 64 << 10 // bytes of a peer's chain that are passed on
	verifyError   = 1 << 10  // of an error, which may quote a peer's certificate
)

// verify makes a handshake that the agent has asked for, beside everything else, and answers.
func (t *tunnel) verify(ctx context.Context, wg *sync.WaitGroup, s *session, m *control.Verify) {
	select {
	case t.verifying <- struct{}{}:
	default:
		s.postVerified(&control.Verified{Number: m.GetNumber(), Reached: control.Stage_STAGE_PREPARE,
			Error: fmt.Sprintf("%d other handshakes are being made: try again", verifyAtOnce)})
		return
	}
	wg.Go(func() {
		defer func() { <-t.verifying }()
		ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
		defer cancel()
		v := &verification{tunnel: t, answer: &control.Verified{Number: m.GetNumber()}}
		if err := v.run(ctx, m); err != nil {
			text := err.Error() // may quote the peer's certificate, and a message takes nothing but UTF-8
			v.answer.Error = strings.ToValidUTF8(text[:min(len(text), verifyError)], "?")
		}
		s.postVerified(v.answer)
	})
}

func (s *session) postVerified(m *control.Verified) {
	s.post(&control.FromTunnel{Message: &control.FromTunnel_Verified{Verified: m}})
}

// verification is one handshake, made as the pool makes them, on a connection that carries nothing.
type verification struct {
	tunnel *tunnel
	answer *control.Verified
}

func (v *verification) run(ctx context.Context, m *control.Verify) error {
	t := v.tunnel
	v.answer.Reached = control.Stage_STAGE_PREPARE
	w := t.workload(m.GetWorkload())
	if w == nil {
		return errWorkloadGone
	}
	expect, err := spiffeid.FromString(m.GetIdentity())
	if err != nil {
		return fmt.Errorf("identity to expect: %w", err)
	}
	to, err := control.ToAddrPort(m.GetAddress(), m.GetPort())
	if err != nil {
		return err
	}
	own, err := t.ids.acquire(w.spec.Load().identity)
	if err != nil {
		return err
	}
	defer own.key.release()
	v.answer.LocalChain = own.certificate.Certificate
	tcp, err := v.connect(ctx, w, to)
	if err != nil {
		return err
	}
	v.answer.Reached = control.Stage_STAGE_HANDSHAKE
	if err := v.handshake(ctx, tcp, own, expect); err != nil {
		return err
	}
	v.answer.Reached = control.Stage_STAGE_DONE
	return nil
}

func (v *verification) connect(ctx context.Context, w *workload, to netip.AddrPort) (*net.TCPConn, error) {
	f, err := v.tunnel.openSocket(ctx, w, w.spec.Load(), netip.Addr{}, to)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	v.answer.Reached = control.Stage_STAGE_CONNECT
	begin := time.Now()
	tcp, err := connectSocket(ctx, f, to)
	v.answer.ConnectNanoseconds = uint64(time.Since(begin))
	return tcp, err
}

// handshake ends with the peer's first word: its refusal of our certificate comes no sooner.
func (v *verification) handshake(ctx context.Context, tcp *net.TCPConn, own *svid, expect spiffeid.ID) error {
	begin := time.Now()
	err := hbone.Probe(ctx, tcp, v.tunnel.ids.clientTLS(own, expect, new(proof), v.observe))
	v.answer.HandshakeNanoseconds = uint64(time.Since(begin))
	unanswered := (*hbone.AnswerError)(nil)
	switch {
	case aboutCertificate(err):
		return fmt.Errorf("peer refused our certificate: %w", err)
	case errors.As(err, &unanswered) && ctx.Err() == nil:
		return fmt.Errorf("peer may not accept our certificate: %w", err)
	}
	return err
}

// aboutCertificate reports whether an error is an alert by which a peer refuses a certificate. crypto/tls has no type
// for those that it receives.
func aboutCertificate(err error) bool {
	remote := (*net.OpError)(nil)
	return errors.As(err, &remote) && remote.Op == "remote error" && strings.Contains(remote.Err.Error(), "certificate")
}

func (v *verification) observe(state tls.ConnectionState) {
	v.answer.PeerChain = rawChain(state.PeerCertificates)
	v.answer.TlsVersion = tls.VersionName(state.Version)
	v.answer.CipherSuite = tls.CipherSuiteName(state.CipherSuite)
	v.answer.Group = state.CurveID.String()
}

// rawChain returns as much of a chain as fits into a message.
func rawChain(chain []*x509.Certificate) (raw [][]byte) {
	size := 0
	for _, c := range chain {
		if size += len(c.Raw); size > verifyChain {
			break
		}
		raw = append(raw, c.Raw)
	}
	return raw
}
