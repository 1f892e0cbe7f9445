package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func exampleVerdict() *admin.Verdict {
	return &admin.Verdict{
		Node: "worker-1", From: "shop/cart-1", FromIdentity: "spiffe://cluster.local/ns/shop/sa/cart", FromEnrolled: true,
		FromReason: "namespace label istio.io/dataplane-mode=ambient", To: "shop/till", Service: true, Address: "10.2.0.2:80",
		Outcome: admin.OutcomeMTLS, Reason: "shop/all",
		Endpoints: []admin.EndpointVerdict{{Address: "10.1.1.1:8080", Pod: "shop/till-1", Node: "worker-2", Outcome: admin.OutcomeMTLS, InMesh: true,
			Identity: "spiffe://cluster.local/ns/shop/sa/till", Mode: "STRICT", Client: "shop/all", Server: "port 8080 is STRICT by policy shop/all"}},
		Warnings: []string{},
	}
}

func TestCanForPeople(t *testing.T) {
	refused := exampleVerdict()
	refused.Outcome, refused.Reason, refused.FromEnrolled, refused.FromIdentity = admin.OutcomeRefused, "the client sends plaintext, and port 8080 is STRICT by policy shop/all", false, ""
	refused.FromReason, refused.Warnings = "outside: a client that is in no mesh", []string{"a policy cannot be read"}
	refused.Endpoints[0].Outcome, refused.Endpoints[0].RefusedBy, refused.Endpoints[0].Identity = admin.OutcomeRefused, admin.SideServer, ""
	refused.Tried = &admin.Trial{Outcome: admin.TrialRefused, Error: "connection refused", AsForetold: true}
	tried := exampleVerdict()
	tried.Endpoints[0].SameNode = true
	tried.Tried = &admin.Trial{Outcome: admin.TrialReset, Local: "10.1.0.1:40000", Error: "connection reset by peer", Connect: 1234567, Watched: 20 * time.Millisecond,
		Carried: "failed", Reason: "peer's certificate has expired", Difference: "it was to work, and did not: peer's certificate has expired"}
	for file, tc := range map[string]struct {
		verdict *admin.Verdict
		args    []string
		code    int
	}{
		"can.txt":         {exampleVerdict(), nil, 0},
		"can-wide.txt":    {exampleVerdict(), []string{"-o", "wide"}, 0},
		"can-refused.txt": {refused, nil, 1},
		"can-tried.txt":   {tried, []string{"--try"}, 1},
	} {
		socket := serveNode(t, &answeringNode{verdict: tc.verdict}, version)
		args := append([]string{"can", "shop/cart-1", "svc", "shop/till:80", "--admin-socket", socket}, tc.args...)
		stdout, stderr, err := runAnswers(t.Context(), nil, args...)
		if codeOf(err) != tc.code || stderr != "" {
			t.Fatalf("%s: %v, %s", file, err, stderr)
		}
		goldenFile(t, file, stdout)
	}
}

func TestWhatCanAsks(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	for args, want := range map[string]admin.Question{
		"shop/cart-1 shop/till-1":                         {From: "shop/cart-1", To: "shop/till-1"},
		"shop/cart-1 shop/till-1:http":                    {From: "shop/cart-1", To: "shop/till-1", Port: "http"},
		"pod/shop/cart-1 svc/shop/till:80":                {From: "shop/cart-1", To: "shop/till", Service: true, Port: "80"},
		"pod shop/cart-1 service shop/till --try":         {From: "shop/cart-1", To: "shop/till", Service: true, Try: true},
		"cart-1 svc/till -n shop":                         {From: "shop/cart-1", To: "shop/till", Service: true},
		"outside svc shop/till:80":                        {From: "outside", To: "shop/till", Service: true, Port: "80"},
		"outside shop/till-1:80":                          {From: "outside", To: "shop/till-1", Port: "80"},
		"pod/outside shop/till-1 -n shop --node worker-2": {From: "shop/outside", To: "shop/till-1"},
	} {
		v := exampleVerdict()
		v.From = want.From
		node := &answeringNode{verdict: v, asked: make(chan admin.Question, 1)}
		socket := serveNode(t, node, version)
		for where, f := range map[string]*fakeFleet{"here": nil, "there": {agents: map[string]string{"worker-2": ""}, sockets: map[string]string{"worker-2": socket},
			pods: map[string]string{"shop/cart-1": "worker-2", "shop/till-1": "worker-2", "shop/outside": "worker-2"}}} {
			at := socket
			if f != nil {
				at = none
			} else if strings.Contains(args, "--node") {
				continue
			}
			_, _, err := runAnswers(t.Context(), f, append([]string{"can", "--admin-socket", at}, strings.Fields(args)...)...)
			if err != nil {
				t.Errorf("%s, %s: %v", args, where, err)
				continue
			}
			if got := <-node.asked; got != want {
				t.Errorf("%s, %s: asked %+v, want %+v", args, where, got, want)
			}
		}
	}
}

func TestCanThatIsNotUnderstood(t *testing.T) {
	for args, want := range map[string]string{
		"shop/cart-1":                      "accepts between 2 and 4",
		"svc/shop/till shop/cart-1":        "a Service opens no connections",
		"shop/cart-1:80 shop/till-1":       "FROM has no port",
		"shop/cart-1 shop/till-1:":         "the port is missing",
		"shop/cart-1 outside":              "TO is a pod or a Service",
		"shop/cart-1 shop/till-1 and more": "nothing is expected after",
		"shop/cart-1 svc":                  "NAMESPACE/NAME",
		"shop/cart-1 pod a/b/c":            "NAMESPACE/NAME",
		"shop/cart-1 till -n old":          "not in namespace old",
		"a/b c/d -o pem":                   "must be one of table, wide, json, yaml",
	} {
		_, _, err := runAnswers(t.Context(), nil, append([]string{"can"}, strings.Fields(args)...)...)
		if codeOf(err) != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: code %d, %v, want %q", args, codeOf(err), err, want)
		}
	}
}

func TestExitCodeOfCan(t *testing.T) {
	endpoints := func(all ...admin.Outcome) []admin.EndpointVerdict {
		var e []admin.EndpointVerdict
		for _, o := range all {
			e = append(e, admin.EndpointVerdict{Outcome: o})
		}
		return e
	}
	for name, tc := range map[string]struct {
		outcome   admin.Outcome
		endpoints []admin.EndpointVerdict
		tried     admin.TrialOutcome
		code      int
	}{
		"mTLS":                      {admin.OutcomeMTLS, nil, "", 0},
		"plaintext":                 {admin.OutcomePlaintext, nil, admin.TrialConnected, 0},
		"refused":                   {admin.OutcomeRefused, nil, "", 1},
		"refused, but it works":     {admin.OutcomeRefused, nil, admin.TrialConnected, 1},
		"mTLS, but in plaintext":    {admin.OutcomeMTLS, nil, admin.TrialConnected, 1},
		"mTLS, but it is reset":     {admin.OutcomeMTLS, nil, admin.TrialReset, 1},
		"mTLS or plaintext":         {admin.OutcomeMixed, endpoints(admin.OutcomeMTLS, admin.OutcomePlaintext), "", 0},
		"mTLS or plaintext, closed": {admin.OutcomeMixed, endpoints(admin.OutcomeMTLS, admin.OutcomePlaintext), admin.TrialClosed, 0},
		"mTLS or refused":           {admin.OutcomeMixed, endpoints(admin.OutcomeMTLS, admin.OutcomeRefused), "", 1},
	} {
		v := &admin.Verdict{From: "a/b", Outcome: tc.outcome, Endpoints: tc.endpoints}
		if tc.tried != "" {
			v.Tried = &admin.Trial{Outcome: tc.tried, AsForetold: name != "refused, but it works" && name != "mTLS, but in plaintext"}
		}
		socket := serveNode(t, &answeringNode{verdict: v}, version)
		stdout, _, err := runAnswers(t.Context(), nil, "can", "a/b", "c/d", "--admin-socket", socket, "-o", "json")
		if codeOf(err) != tc.code || !strings.Contains(stdout, `"outcome": "`+string(tc.outcome)+`"`) {
			t.Errorf("%s: code %d, %v\n%s", name, codeOf(err), err, stdout)
		}
	}
}
