package walk

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// evidence is what the tunnels' logs say about one connection.
type evidence struct {
	carried             string
	source, destination string // SPIFFE IDs
	decided             string // the policy
	logged              bool
}

// clockSkew is how far the clocks of the nodes may be apart.
const clockSkew = 2 * time.Second

// witness waits until the tunnels have written about a request, but not for longer than the limit: what passes the kernel as
// plaintext leaves no line.
func (s *suite) witness(ctx context.Context, limit time.Duration, from *pod, to netip.AddrPort, a attempt, begin time.Time) evidence {
	var e evidence
	_ = until(ctx, limit, func(context.Context) error { // that there is none is an answer
		e = s.evidence(from, to, a, begin)
		if !e.logged {
			return fmt.Errorf("not logged")
		}
		return nil
	})
	return e
}

func (s *suite) evidence(from *pod, to netip.AddrPort, a attempt, begin time.Time) evidence {
	var e evidence
	for _, l := range s.logs.lines("tunnel", begin.Add(-clockSkew)) {
		switch l.get("msg") {
		case "plaintext refused: workload is STRICT":
			if !a.ok && isAddress(l.get("source"), from) && sameAddrPort(l.get("destination"), to) && !e.logged {
				e.logged, e.decided = true, l.get("policy")
			}
		case "connection refused":
			if !a.ok && l.get("source.workload") == from.ref() && !e.logged {
				e.logged, e.decided = true, l.get("reason")
			}
		case "connection open", "connection complete":
			if a.local.IsValid() && sameAddrPort(l.get("source.addr"), a.local) {
				e.add(l)
			}
		}
	}
	return e
}

// add takes over a line about a connection. Both sides of one that is mTLS write one; the receiving side knows best which
// policy let it in.
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

// isAddress reports whether the text is an address of the pod, with any port.
func isAddress(text string, p *pod) bool {
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		return false
	}
	for _, ip := range p.ip {
		if ip == at.Addr().Unmap() {
			return true
		}
	}
	return false
}

func sameAddrPort(text string, want netip.AddrPort) bool {
	at, err := netip.ParseAddrPort(text)
	return err == nil && at.Port() == want.Port() && at.Addr().Unmap() == want.Addr().Unmap()
}
