package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/culvert-mesh/culvert/agent/admin"
)

const (
	// maxPods and maxErrors keep the table readable.
	maxPods   = 3
	maxErrors = 20
	// maxText bounds what others chose, as the names in their certificates.
	maxText = 500
)

// writeCertificates writes the table of identities, what is wrong with them, and the roots.
func writeCertificates(w io.Writer, all *admin.Certificates) error {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s, trust domain %s", plain(all.Node), plain(all.TrustDomain))
	if len(all.Aliases) > 0 {
		fmt.Fprintf(&b, " (also %s)", plain(strings.Join(all.Aliases, ", ")))
	}
	b.WriteString("\n\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IDENTITY\tSERIAL\tISSUER\tLIFE LEFT\tNEXT RENEWAL\tSOURCE\tPODS\tSTATE")
	for i := range all.SVIDs {
		s := &all.SVIDs[i]
		serial, issuer, left := "-", "-", "-"
		if len(s.Chain) > 0 {
			leaf := &s.Chain[0]
			serial, issuer, left = leaf.Serial, cmp.Or(leaf.Issuer, "-"), lifeLeft(leaf, all.Time)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", plain(s.Identity), plain(serial), plain(issuer), left,
			renewal(s, all.Time), plain(all.Source), podList(s.Workloads), stateOf(s, all.Time))
	}
	if len(all.SVIDs) == 0 {
		fmt.Fprintln(t, "(none: no pod of this node is enrolled)")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	writeLastErrors(&b, all.SVIDs)
	b.WriteString("\n")
	fmt.Fprintln(t, "TRUST DOMAIN\tROOT\tSERIAL\tLIFE LEFT\tSHA-256")
	for _, bundle := range all.Bundles {
		for i := range bundle.Roots {
			root := &bundle.Roots[i]
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", plain(bundle.TrustDomain), plain(root.Subject), plain(root.Serial), lifeLeft(root, all.Time), plain(root.SHA256))
		}
		if len(bundle.Roots) == 0 {
			fmt.Fprintf(t, "%s\t(not known yet)\n", plain(bundle.TrustDomain))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeLastErrors(b *strings.Builder, all []admin.SVID) {
	count := 0
	for i := range all {
		s := &all[i]
		if s.LastError == "" {
			continue
		}
		if count++; count == 1 {
			b.WriteString("\nlast errors:\n")
		}
		if count <= maxErrors {
			fmt.Fprintf(b, "  %s: %s\n", plain(s.Identity), plain(s.LastError))
		}
	}
	if count > maxErrors {
		fmt.Fprintf(b, "  and %d more\n", count-maxErrors)
	}
}

func stateOf(s *admin.SVID, now time.Time) string {
	switch {
	case len(s.Chain) == 0 && s.Failing:
		return "none: failing"
	case len(s.Chain) == 0:
		return "none yet"
	case !now.Before(s.Chain[0].NotAfter):
		return "EXPIRED"
	case now.Before(s.Chain[0].NotBefore):
		return "not valid yet"
	case s.Failing:
		return "renewal failing"
	case s.HeldByTunnelOnly:
		return "ok (key held by the tunnel alone)"
	}
	return "ok"
}

func renewal(s *admin.SVID, now time.Time) string {
	switch {
	case len(s.Chain) == 0:
		return "-"
	case s.NextRenewal == nil:
		return "told by source"
	case !s.NextRenewal.After(now):
		return "due"
	}
	return "in " + short(s.NextRenewal.Sub(now))
}

func lifeLeft(c *admin.Certificate, now time.Time) string {
	if left := c.NotAfter.Sub(now); left > 0 {
		return short(left)
	}
	return "expired " + short(now.Sub(c.NotAfter)) + " ago"
}

func podList(pods []string) string {
	if len(pods) == 0 {
		return "-"
	}
	if more := len(pods) - maxPods; more > 0 {
		return fmt.Sprintf("%s +%d", plain(strings.Join(pods[:maxPods], ",")), more)
	}
	return plain(strings.Join(pods, ","))
}

// short is a duration in its two largest units.
func short(d time.Duration) string {
	d = d.Abs()
	const day = 24 * time.Hour
	switch {
	case d >= 365*day:
		return fmt.Sprintf("%dy%dd", d/(365*day), d%(365*day)/day)
	case d >= 2*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// plain keeps what others chose from moving the cursor, or filling the screen.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	if r := []rune(s); len(r) > maxText {
		return string(r[:maxText]) + "..."
	}
	return s
}
