package agent

import (
	"fmt"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

// compare says how a trial differs from what was foretold; empty: it does not, as far as can be seen.
func compare(v *admin.Verdict, t *admin.Trial) string {
	refusals, ownPort := 0, 0
	for n := range v.Endpoints {
		e := &v.Endpoints[n]
		if e.Outcome == admin.OutcomeRefused {
			refusals++
		}
		if tunnelsOwn(e) {
			ownPort++
		}
	}
	maybeRefused := v.Outcome == admin.OutcomeRefused || refusals > 0
	switch {
	case t.Works() && ownPort > 0:
		return "" // the tunnel that answers has not been sent anything to refuse
	case t.Works() && v.Outcome == admin.OutcomeRefused:
		return "it was to be refused, and was not"
	case t.Works():
		return compareCarried(v, t)
	case !maybeRefused:
		return withReason("it was to work, and did not", t)
	case t.Outcome == admin.TrialTimeout || t.Outcome == admin.TrialFailed:
		return withReason("it was to be refused by the mesh, and failed for another reason", t)
	case t.Carried == string(observe.Failed) && !sameReason(v, t.Reason):
		return withReason("it was to be refused by the mesh, and failed for another reason", t)
	case t.Carried == string(observe.Refused) && t.Reason != "" && !sameReason(v, t.Reason):
		return withReason("it was refused for another reason", t)
	}
	return ""
}

// compareCarried is for connections that were made.
func compareCarried(v *admin.Verdict, t *admin.Trial) string {
	was := map[observe.Carried]admin.Outcome{
		observe.MTLS: admin.OutcomeMTLS, observe.SameNode: admin.OutcomeMTLS, observe.Plaintext: admin.OutcomePlaintext,
	}[observe.Carried(t.Carried)]
	if was == "" || was == v.Outcome || v.Outcome == admin.OutcomeMixed {
		return ""
	}
	return fmt.Sprintf("it was to be %s, and was %s", v.Outcome, was)
}

func withReason(text string, t *admin.Trial) string {
	if t.Reason != "" {
		return text + ": " + t.Reason
	}
	return text
}

// sameReason reports whether what was seen is what was foretold. Tunnels and kernels have fewer words for it.
func sameReason(v *admin.Verdict, seen string) bool {
	foretold := []string{v.Reason}
	for n := range v.Endpoints {
		e := &v.Endpoints[n]
		foretold = append(foretold, e.Client)
		if e.RefusedBy == admin.SideServer && (!e.InMesh || strings.Contains(seen, "STRICT") || tunnelsOwn(e)) {
			return true
		}
	}
	return slices.ContainsFunc(foretold, func(text string) bool {
		return text != "" && (strings.Contains(text, seen) || strings.Contains(seen, text))
	})
}

// tunnelsOwn reports whether nobody but tunnels is served there.
func tunnelsOwn(e *admin.EndpointVerdict) bool {
	return e.RefusedBy == admin.SideServer && strings.HasSuffix(e.Address, fmt.Sprintf(":%d", hbonePort))
}
