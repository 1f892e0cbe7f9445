package main

import (
	"strings"

	"github.com/culvert-mesh/culvert/agent/admin"
)

// adviceOnConnect goes by what the system calls said.
func adviceOnConnect(h *admin.Handshake) []string {
	switch text := strings.ToLower(h.Error); {
	case strings.Contains(text, "refused"):
		return []string{
			"nobody listens on " + h.Address + ": is " + h.To + " enrolled? `kubectl get pod` shows the annotation ambient.istio.io/redirection=enabled then",
			"if it is, the agent of its node is gone, or was uninstalled: `culvert certs " + h.To + "` asks it",
		}
	case strings.Contains(text, "timed out"), strings.Contains(text, "timeout"), strings.Contains(text, "deadline"):
		return []string{
			"packets to " + h.Address + " get no answer: a NetworkPolicy or firewall has to let port 15008 through, from pod to pod",
			"if nothing is in the way, the tunnel of " + h.To + "'s node does not accept: look whether it runs",
		}
	case strings.Contains(text, "unreachable"), strings.Contains(text, "no route"):
		return []string{"there is no route to " + h.Address + ": the CNI plugin's network between the nodes is broken, or the pod is gone"}
	case strings.Contains(text, "reset"):
		return []string{"something between the pods cut the connection to " + h.Address + ", or the tunnel there is just ending: try again"}
	}
	return []string{"the connection to " + h.Address + " could not be made: can the pods reach each other without Culvert?"}
}

// alert is an answer of the peer in TLS, by crypto/tls's words for it.
type alert struct {
	text   string
	advice string
}

// remoteAlert begins what crypto/tls reports when the peer gave up.
const remoteAlert = "remote error: tls: "

// alerts are those that a peer sends about a certificate or the lack of common ground; the first that fits counts.
func alerts() []alert {
	return []alert{
		{"unknown certificate authority", "it knows no root that the certificate chains to: its node's roots differ from this one's; `culvert certs` on both shows the fingerprints"},
		{"expired certificate", "by its node's clock the certificate has expired, or is not valid yet: compare the clocks of both nodes"},
		{"certificate required", "it got no certificate: this node presented none"},
		{"access denied", "it does not accept this identity: its trust domain is neither the own, nor an alias, nor federated there"},
		{"bad certificate", "it does not accept this identity or chain: look whether its roots and trust domain aliases fit; the log of its tunnel has the reason"},
		{"unsupported certificate", "it cannot use a certificate of this kind: Culvert's are ECDSA P-256 with both extended key usages"},
		{"revoked certificate", "it holds the certificate to be revoked"},
		{"no application protocol", "it does not speak HTTP/2 on that port: no tunnel of a mesh listens there"},
		{"protocol version not supported", "it does not speak TLS 1.3: no tunnel of a mesh listens there"},
		{"handshake failure", "the two have no cipher or key exchange in common: is one of them restricted to FIPS?"},
		{"internal error", "it has no certificate to present itself: `culvert certs` for the pod there shows why"},
		{"unrecognized name", "it wants a server name, which tunnels never send: no tunnel of a mesh listens there"},
		{"", "its tunnel gave up; its log has the reason"},
	}
}

// adviceOnTLS says which side gave up, and why. What was found wrong with a chain has its advice already.
func adviceOnTLS(h *admin.Handshake, localFailed, peerFailed bool) []string {
	_, words, refused := strings.Cut(h.Error, remoteAlert)
	switch text := strings.ToLower(h.Error); {
	case refused:
		return adviceOnAlert(h, words, localFailed)
	case peerFailed:
		return []string{"this node refused what " + h.To + " presented, for what is said above"}
	case strings.Contains(text, "eof"), strings.Contains(text, "reset"), strings.Contains(text, "broken pipe"):
		return []string{
			"the tunnel of " + h.To + " closed the connection without a word: it has no certificate for it perhaps; `culvert certs " + h.To + "`",
		}
	case strings.Contains(text, "timeout"), strings.Contains(text, "timed out"), strings.Contains(text, "deadline"):
		return []string{
			"the connection is accepted, but nobody goes on: the tunnel of " + h.To + "'s node is overloaded, stopped or being replaced",
			"a path that loses large packets (MTU) looks the same",
		}
	case strings.Contains(text, "does not look like a tls handshake"):
		return []string{"what listens on " + h.Address + " does not speak TLS: no tunnel of a mesh listens there"}
	case strings.Contains(text, "protocol version"):
		return []string{"what listens on " + h.Address + " does not speak TLS 1.3: no tunnel of a mesh listens there"}
	case localFailed:
		return []string{"the certificate that this node presents is of no use, for what is said above"}
	}
	return []string{"this node refused what " + h.To + " presented; the log of its tunnel has more"}
}

func adviceOnAlert(h *admin.Handshake, words string, localFailed bool) []string {
	advice := []string{"the node of " + h.To + " refused the certificate that " + h.From + " presented, or the handshake itself"}
	for _, a := range alerts() {
		if strings.Contains(words, a.text) {
			advice = append(advice, a.advice)
			break
		}
	}
	if localFailed {
		advice = append(advice, "see what is said above about the certificate of "+h.From)
	}
	return advice
}
