package hbone

import (
	"crypto/tls"
	"fmt"
)

const alpn = "h2"

// BaseTLSConfig returns what both sides of an HBONE connection need, without identities: the caller
// adds certificates and the verification of the peer. Tickets are off because a resumed handshake
// would skip VerifyPeerCertificate. With postQuantum, X25519MLKEM768 is offered before the classic
// curves; it costs about a kilobyte per flight.
func BaseTLSConfig(postQuantum bool) *tls.Config {
	curves := []tls.CurveID{tls.X25519, tls.CurveP256}
	if postQuantum {
		curves = append([]tls.CurveID{tls.X25519MLKEM768}, curves...)
	}
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{alpn},
		SessionTicketsDisabled:      true,
		CurvePreferences:            curves,
		DynamicRecordSizingDisabled: true,
	}
}

func checkHandshake(st tls.ConnectionState) error {
	if st.Version != tls.VersionTLS13 {
		return fmt.Errorf("TLS version %s, want 1.3", tls.VersionName(st.Version))
	}
	if st.NegotiatedProtocol != alpn {
		return fmt.Errorf("ALPN %q, want %q", st.NegotiatedProtocol, alpn)
	}
	return nil
}
