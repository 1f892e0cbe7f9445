package demo

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"time"
)

// evidence is what the logs say about one connection.
type evidence struct {
	carried             string
	source, destination string // SPIFFE IDs
	decided             string
	logged              bool // a tunnel wrote a line about it
}

const refusedMessage = "plaintext refused: workload is STRICT"

// evidence looks for what the tunnels wrote about the attempt since begin. Plaintext that passes in the
// kernel leaves no line; then the agent's word on the policy in force counts.
func (m *Mesh) evidence(ctx context.Context, c check, a Attempt, begin time.Time, version int) (evidence, error) {
	limit := logDelay
	if a.OK && c.carried == byPlaintext {
		limit = logDelay / 10 // no line is expected; one that contradicts would be there by then
	}
	var e evidence
	err := poll(ctx, limit, func() (bool, error) {
		var err error
		e, err = m.tunnelEvidence(c, a, begin, version)
		return e.logged, err
	})
	if err != nil && !errors.Is(err, errTimedOut) {
		return e, err
	}
	if a.OK && e.carried == "" {
		e.carried = byPlaintext
	}
	if e.decided == "" {
		e.decided, err = m.policyInForce(c.to, c.port)
		return e, err
	}
	return e, nil
}

func (m *Mesh) tunnelEvidence(c check, a Attempt, begin time.Time, version int) (evidence, error) {
	var e evidence
	for _, n := range m.nodes {
		lines, err := n.tunnel.log.read()
		if err != nil {
			return e, err
		}
		for _, l := range lines {
			if l.when().Before(begin) {
				continue
			}
			switch l.get("msg") {
			case refusedMessage:
				if !a.OK && m.isAt(l.get("source"), c.from, version, 0) && m.isAt(l.get("destination"), c.to, version, c.port) {
					e.logged, e.decided = true, l.get("policy")
				}
			case "connection refused":
				// A client that is reset may not have learned its own port.
				if !a.OK && l.get("source.workload") == c.from && (a.Local == "" || sameAddrPort(l.get("source.addr"), a.Local)) {
					e.logged, e.decided = true, l.get("reason")
				}
			case "connection open", "connection complete":
				if a.Local != "" && sameAddrPort(l.get("source.addr"), a.Local) {
					e.add(l)
				}
			}
		}
	}
	return e, nil
}

// add takes over a connection's line. Both sides of an mTLS connection write one; the receiving side knows
// best which policy let it in.
func (e *evidence) add(l line) {
	e.logged = true
	e.carried = l.get("carried")
	if id := l.get("source.identity"); id != "" {
		e.source = id
	}
	if id := l.get("destination.identity"); id != "" {
		e.destination = id
	}
	if l.get("policy") != "" && (e.decided == "" || l.get("direction") == "inbound") {
		e.decided = l.get("policy")
	}
}

// isAt reports whether the text is an address and port of the pod; port 0 stands for any.
func (m *Mesh) isAt(text, ref string, version int, port uint16) bool {
	at, err := netip.ParseAddrPort(text)
	return err == nil && at.Addr().Unmap() == m.pods[ref].IP(version) && (port == 0 || at.Port() == port)
}

// policyInForce is the policy that the agent of the workload's node applied last to the port.
func (m *Mesh) policyInForce(ref string, port uint16) (string, error) {
	for _, n := range m.nodes {
		if n.lab != m.pods[ref].Node {
			continue
		}
		lines, err := n.agent.log.read()
		if err != nil {
			return "", err
		}
		byPort := map[string]string{}
		for _, l := range lines {
			if l.get("workload") != ref {
				continue
			}
			if _, known := byPort["default"]; l.get("msg") == "pod enrolled" && !known {
				byPort["default"] = "default" // the demo enrols before there are policies
			}
			if l.get("msg") != "policy applied" {
				continue
			}
			if l.get("port") == "default" { // comes first: what was said about ports before is over
				clear(byPort)
			}
			byPort[l.get("port")] = l.get("policy")
		}
		if p, ok := byPort[strconv.Itoa(int(port))]; ok {
			return p, nil
		}
		if p, ok := byPort["default"]; ok {
			return p, nil
		}
	}
	return outsideMesh, nil
}
