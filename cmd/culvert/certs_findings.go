package main

import (
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
)

// States of a finding.
const (
	stateOK     = "ok"
	stateFailed = "FAILED"
	stateNote   = "note"
)

// finding is one line about a handshake.
type finding struct {
	State   string   `json:"state"`
	Subject string   `json:"subject"`
	Text    string   `json:"text"`
	Advice  []string `json:"advice,omitempty"`
}

// maxSkew is how far clocks may differ before it is worth a line.
const maxSkew = 30 * time.Second

// explainHandshake says what a handshake means, in the order in which it went. now is by this machine's clock.
func explainHandshake(h *admin.Handshake, now time.Time) []finding {
	var all []finding
	if skew := now.Sub(h.Time); skew.Abs() > maxSkew {
		all = append(all, finding{stateNote, "clocks", fmt.Sprintf("that of node %s is %s %s this machine's", h.Node, short(skew), behindOrAhead(skew)),
			[]string{"certificates are judged by the nodes' clocks: see that all are kept by NTP"}})
	}
	if h.Stage == admin.StagePrepare {
		return append(all, finding{stateFailed, "prepare", h.Error, []string{
			"the handshake was not begun: `culvert certs " + h.From + "` shows whether there is a certificate for it, and why not",
			"the tunnel of the node must be connected to its agent: look at the logs of both",
		}})
	}
	if h.Stage == admin.StageConnect {
		return append(all, finding{stateFailed, "TCP", h.Error, adviceOnConnect(h)})
	}
	all = append(all, finding{State: stateOK, Subject: "TCP", Text: "connected to " + h.Address + took(h.ConnectTime)})

	local := checkChain(h, h.LocalChain, h.FromIdentity, h.From)
	peer := checkChain(h, h.PeerChain, h.ExpectedIdentity, h.To)
	all = append(append(all, local...), peer...)
	if h.OK() {
		return append(all, finding{State: stateOK, Subject: "TLS",
			Text: fmt.Sprintf("%s, %s, %s%s", h.TLSVersion, h.Cipher, h.Group, took(h.HandshakeTime))})
	}
	return append(all, finding{stateFailed, "TLS", h.Error, adviceOnTLS(h, anyFailed(local), anyFailed(peer))})
}

func behindOrAhead(skew time.Duration) string {
	if skew > 0 {
		return "behind"
	}
	return "ahead of"
}

func took(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return fmt.Sprintf(" in %.1f ms", d.Seconds()*1000)
}

func anyFailed(all []finding) bool {
	for _, f := range all {
		if f.State == stateFailed {
			return true
		}
	}
	return false
}
