package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube"
	"github.com/culvert-mesh/culvert/policy"
)

func TestPolicyOfACluster(t *testing.T) {
	contents := source.Contents{
		Namespaces: []source.Namespace{{Name: "n", Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}}},
		Pods:       []source.Pod{{Namespace: "n", Name: "a", Labels: map[string]string{"app": "a"}, Ports: map[string]uint16{"http": 8080}, ContainerPorts: []uint16{8080}}},
		Services:   []source.Service{{Namespace: "n", Name: "s", Selector: map[string]string{"app": "a"}, Ports: []source.ServicePort{{Port: 80, Target: "http"}}}},
		Policies:   []policy.PeerAuthentication{{Namespace: "n", Name: "strict", Mode: policy.Strict}},
		Rules:      []policy.DestinationRule{{Namespace: "n", Name: "plain", Host: "s.n.svc.cluster.local", TLS: &policy.ClientTLS{Mode: policy.TLSDisable}}},
	}
	broken := contents
	broken.Problems = []source.Problem{{Object: "PeerAuthentication n/bad", Err: errors.New("mode is unknown")}}
	broken.UnreadablePolicies = []string{"n"}
	for name, tc := range map[string]struct {
		args           []string
		contents       source.Contents
		err            error
		code           int
		stdout, stderr string
	}{
		"explain":                {[]string{"explain", "n/a:http"}, contents, nil, 0, "port 8080: STRICT, decided by n/strict", ""},
		"lint":                   {[]string{"lint"}, contents, nil, 0, "warning: DestinationRule n/plain: spec.trafficPolicy.tls.mode: DISABLE sends plaintext", ""},
		"lint, strictly":         {[]string{"lint", "--strict"}, contents, nil, 1, "DestinationRule n/plain", ""},
		"explain what is broken": {[]string{"explain"}, broken, nil, 1, "a policy could not be read", "cluster: PeerAuthentication n/bad: mode is unknown"},
		"lint what is broken":    {[]string{"lint", "-o", "json"}, broken, nil, 1, `"object": "PeerAuthentication n/bad"`, "cluster: PeerAuthentication n/bad"},
		"no cluster":             {[]string{"explain"}, contents, errors.New("API server: no kubeconfig is set"), 1, "", ""},
		"both":                   {[]string{"lint", "-f", "x", "--context", "y"}, contents, nil, 2, "", ""},
		"not a format":           {[]string{"lint", "-o", "xml"}, contents, nil, 2, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			c := policyCommand(func(_ context.Context, a kube.Access) (source.Contents, error) {
				if a.Kubeconfig != "k" || a.UserAgent == "" {
					t.Errorf("asked %+v", a)
				}
				return tc.contents, tc.err
			})
			c.SilenceErrors, c.SilenceUsage = true, true
			c.SetArgs(append(tc.args, "--kubeconfig", "k"))
			c.SetOut(&out)
			c.SetErr(&errOut)
			err := c.ExecuteContext(t.Context())
			if codeOf(err) != tc.code || !strings.Contains(out.String(), tc.stdout) || !strings.Contains(errOut.String(), tc.stderr) {
				t.Errorf("code %d, %v\n%s%s", codeOf(err), err, out.String(), errOut.String())
			}
			if tc.err != nil && !strings.Contains(err.Error(), "read manifests with -f") {
				t.Error(err)
			}
		})
	}
}
