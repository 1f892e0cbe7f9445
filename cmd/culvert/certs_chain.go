package main

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/admin"
)

const (
	// clockDoubt is how close to the edge of a certificate's life a clock may be the reason.
	clockDoubt = 10 * time.Minute
	// maxRoots bounds how many roots a line names, and fingerprint how much of each.
	maxRoots    = 5
	fingerprint = 16
)

// chainCheck looks at what one side presented, by the clock and the roots of the node that asked.
type chainCheck struct {
	h       *admin.Handshake
	pod     string
	want    string
	all     []finding
	subject string
}

func checkChain(h *admin.Handshake, chain []admin.Certificate, want, pod string) []finding {
	c := &chainCheck{h: h, pod: pod, want: want, subject: "certificate of " + pod}
	if len(chain) == 0 {
		return []finding{{State: stateNote, Subject: c.subject, Text: "none was presented before the handshake ended"}}
	}
	certs, err := admin.ParseChain(chain)
	if err != nil {
		c.fail("is not readable: " + err.Error())
		return c.all
	}
	leaf := certs[0]
	c.all = append(c.all, finding{State: stateOK, Subject: c.subject, Text: fmt.Sprintf("serial %s, issued by %s, %s of life left of %s",
		chain[0].Serial, leaf.Issuer, lifeLeft(&chain[0], h.Time), short(leaf.NotAfter.Sub(leaf.NotBefore)))})
	id, err := x509svid.IDFromCert(leaf)
	c.identity(id, err)
	c.life(leaf)
	c.chain(certs, id)
	return c.all
}

func (c *chainCheck) ok(format string, args ...any) {
	c.all = append(c.all, finding{State: stateOK, Subject: c.subject, Text: fmt.Sprintf(format, args...)})
}

func (c *chainCheck) fail(text string, advice ...string) {
	c.all = append(c.all, finding{stateFailed, c.subject, text, advice})
}

func (c *chainCheck) identity(id spiffeid.ID, err error) {
	switch {
	case err != nil:
		c.fail("has no SPIFFE ID: "+err.Error(), "whatever answers is not a tunnel of a mesh, or its issuer makes no SVIDs")
	case id.String() != c.want && c.ofAlias(id):
		c.ok("proves %s, whose trust domain is an alias of the own", id)
	case id.String() != c.want:
		c.fail(fmt.Sprintf("proves %s, and not %s", id, c.want),
			"the pod at that address is another than this node believes, or its service account is: compare `kubectl get pod -o wide`",
			"if it lasts, the node's view of the cluster is behind: look at its agent's log")
	default:
		c.ok("proves %s, as expected", id)
	}
}

// ofAlias reports whether the same identity is meant, in a trust domain of another name.
func (c *chainCheck) ofAlias(id spiffeid.ID) bool {
	want, err := spiffeid.FromString(c.want)
	return err == nil && id.Path() == want.Path() && slices.Contains(c.h.Aliases, id.TrustDomain().Name())
}

func (c *chainCheck) life(leaf *x509.Certificate) {
	now := c.h.Time
	clock := fmt.Sprintf("it is %s by the clock of node %s: is that right?", now.UTC().Format(time.RFC3339), c.h.Node)
	switch after, before := now.Sub(leaf.NotAfter), leaf.NotBefore.Sub(now); {
	case after >= 0:
		advice := []string{"its agent got no new one in time: `culvert certs " + c.pod + "` shows the last error"}
		if after < clockDoubt {
			advice = append(advice, clock)
		}
		c.fail(fmt.Sprintf("expired %s ago, at %s", short(after), leaf.NotAfter.UTC().Format(time.RFC3339)), advice...)
	case before > 0:
		c.fail(fmt.Sprintf("is valid only in %s, from %s on", short(before), leaf.NotBefore.UTC().Format(time.RFC3339)),
			"the clock of its issuer is ahead, or that of this node is behind: see that both are kept by NTP", clock)
	}
}

// chain verifies at a time when the leaf is valid: its life is another line.
func (c *chainCheck) chain(certs []*x509.Certificate, id spiffeid.ID) {
	leaf := certs[0]
	at := c.h.Time
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	bundle := c.bundle(id)
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	if bundle != nil {
		known, err := admin.ParseChain(bundle.Roots)
		if err != nil {
			c.fail("roots are not readable: " + err.Error())
			return
		}
		for _, root := range known {
			roots.AddCert(root)
		}
	}
	for _, cert := range certs[1:] {
		above.AddCert(cert)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	switch {
	case bundle == nil:
		c.fail(fmt.Sprintf("no roots of its trust domain %s are known on node %s", id.TrustDomain().Name(), c.h.Node),
			"federate with it, or name it as an alias of the own trust domain")
	case err != nil:
		last := admin.NewCertificate(certs[len(certs)-1])
		c.fail(fmt.Sprintf("does not chain to a root that node %s knows: %v", c.h.Node, err),
			fmt.Sprintf("its chain ends with %s (SHA-256 %.*s...), issued by %s", cmp.Or(last.Subject, "the leaf"), fingerprint, last.SHA256, last.Issuer),
			"the roots of "+bundle.TrustDomain+" here are "+namedRoots(bundle.Roots),
			"the nodes' roots differ: compare with `culvert certs --node` of the other one; after a rotation both roots must be known everywhere first")
	default:
		chain := chains[0]
		root := admin.NewCertificate(chain[len(chain)-1])
		c.ok("chains to %s (SHA-256 %.*s...)", root.Subject, fingerprint, root.SHA256)
	}
}

// bundle returns the roots for a trust domain or the one that it is an alias of; nil if there are none.
func (c *chainCheck) bundle(id spiffeid.ID) *admin.Bundle {
	for i := range c.h.Bundles {
		b := &c.h.Bundles[i]
		own := i == 0 && slices.Contains(c.h.Aliases, id.TrustDomain().Name())
		if b.TrustDomain == id.TrustDomain().Name() || own {
			return b
		}
	}
	return nil
}

func namedRoots(roots []admin.Certificate) string {
	if len(roots) == 0 {
		return "not known yet"
	}
	var names []string
	for i := range roots[:min(len(roots), maxRoots)] {
		names = append(names, fmt.Sprintf("%s (SHA-256 %.*s...)", roots[i].Subject, fingerprint, roots[i].SHA256))
	}
	if more := len(roots) - maxRoots; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}
