package file

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/policy"
)

func readText(text string) Result { return Read([]string{"-"}, strings.NewReader(text)) }

func messages(r Result) string {
	var b strings.Builder
	for _, e := range r.Errors {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

func TestReadPolicy(t *testing.T) {
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	for name, tc := range map[string]struct {
		text string
		want policy.PeerAuthentication
	}{
		"whole": {`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p, namespace: n, creationTimestamp: 2024-05-06T07:08:09Z}
spec:
  selector: {matchLabels: {app: x}}
  mtls: {mode: STRICT}
  portLevelMtls: {9080: {mode: PERMISSIVE}, "8080": {}}
`, policy.PeerAuthentication{Namespace: "n", Name: "p", Created: at, SelectorPresent: true, Selector: map[string]string{"app": "x"},
			Mode: policy.Strict, Ports: map[uint16]policy.Mode{9080: policy.Permissive, 8080: policy.Unset}}},
		"v1beta1, default namespace, empty selector": {`
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: p, creationTimestamp: null}
spec: {selector: {}, mtls: {mode: DISABLE}}
`, policy.PeerAuthentication{Namespace: "default", Name: "p", SelectorPresent: true, Mode: policy.Disable}},
		"no spec": {`{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "p"}}`,
			policy.PeerAuthentication{Namespace: "default", Name: "p"}},
		"aliases and merge keys": {`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p}
spec:
  selector: {matchLabels: &l {app: x}}
  mtls: &m {mode: STRICT}
  portLevelMtls: {80: *m, 81: {<<: *m}}
`, policy.PeerAuthentication{Namespace: "default", Name: "p", SelectorPresent: true, Selector: map[string]string{"app": "x"},
			Mode: policy.Strict, Ports: map[uint16]policy.Mode{80: policy.Strict, 81: policy.Strict}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := readText(tc.text)
			if m := messages(r); m != "" {
				t.Fatal(m)
			}
			if d := cmp.Diff([]policy.PeerAuthentication{tc.want}, r.Policies); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	pa := func(spec string) string {
		return "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: n}\nspec:\n" + spec
	}
	const in = "document 1: PeerAuthentication n/p: "
	sel := "  selector: {matchLabels: {app: x}}\n"
	for name, tc := range map[string]struct {
		text, want string
		unread     []string
	}{
		"unknown mode":         {pa("  mtls:\n    mode: STRICTT\n"), "stdin:6: " + in + `spec.mtls.mode: unknown value "STRICTT"`, []string{"n"}},
		"lower case mode":      {pa("  mtls: {mode: strict}\n"), "stdin:5: " + in + "spec.mtls.mode: unknown value", []string{"n"}},
		"mode as number":       {pa("  mtls: {mode: 3}\n"), "unknown value the number 3", []string{"n"}},
		"mode as boolean":      {pa("  mtls: {mode: on}\n"), "unknown value the boolean on", []string{"n"}},
		"unknown field":        {pa("  mtls: {}\n  portLevelMTLS: {}\n"), "stdin:6: " + in + "spec.portLevelMTLS: unknown field, did you mean portLevelMtls?", []string{"n"}},
		"field beside spec":    {pa("  selector: {}\nmtls: {mode: STRICT}\n"), "stdin:6: " + in + "mtls: unknown field", []string{"n"}},
		"wrong type":           {pa("  mtls: STRICT\n"), "spec.mtls: must be a mapping", []string{"n"}},
		"port 0":               {pa(sel + "  portLevelMtls: {0: {}}\n"), "stdin:6: " + in + "spec.portLevelMtls[0]: port 0 is not between", []string{"n"}},
		"port 65536":           {pa(sel + "  portLevelMtls: {65536: {}}\n"), "is not between 1 and 65535", []string{"n"}},
		"port in words":        {pa(sel + "  portLevelMtls: {http: {}}\n"), "must be a whole number", []string{"n"}},
		"port with fraction":   {pa(sel + "  portLevelMtls: {80.5: {}}\n"), "must be a whole number", []string{"n"}},
		"port twice":           {pa(sel + "  portLevelMtls: {80: {}, \"80\": {}}\n"), "appears twice", []string{"n"}},
		"field twice":          {pa("  mtls: {mode: STRICT}\n  mtls: {mode: DISABLE}\n"), "stdin:6: " + in + "spec.mtls: appears twice", []string{"n"}},
		"port twice in JSON":   {pa(sel + "  portLevelMtls: {80: {}, 0x50: {}}\n"), "spec.portLevelMtls.0x50: appears twice", []string{"n"}},
		"port as 80.0":         {pa(sel + "  portLevelMtls: {80.0: {}}\n"), "must be a whole number", []string{"n"}},
		"unknown and null":     {pa("  mtlS: null\n"), "stdin:5: " + in + "spec.mtlS: unknown field, did you mean mtls?", []string{"n"}},
		"numbers in unknown":   {pa(sel + "  ports: {80: {}}\n"), "stdin:6: " + in + "spec.ports: unknown field\n", []string{"n"}},
		"key not a string":     {pa("  selector:\n    matchLabels:\n      80: x\n"), "stdin:7: " + in + "spec.selector.matchLabels[80]: the key must be a string, not the number 80", []string{"n"}},
		"label with dots":      {pa("  selector:\n    matchLabels:\n      a: b\n      a.b/c[0]: 1\n"), "stdin:8: " + in + "spec.selector.matchLabels[a.b/c[0]]: must be a string", []string{"n"}},
		"value on next line":   {pa("  mtls:\n    mode:\n      on\n"), "stdin:7: " + in + "spec.mtls.mode: unknown value the boolean on", []string{"n"}},
		"tag":                  {pa("  mtls: {mode: !!binary x}\n"), `unknown value "x"`, []string{"n"}},
		"infinite":             {pa("  mtls: {mode: .inf}\n"), "unknown value the number .inf", []string{"n"}},
		"two mistakes":         {pa("  mtls: 1\n  mtls: 2\nkin: x\n"), "stdin:5: " + in + "spec.mtls: must be a mapping, not the number 1\nstdin:6: " + in + "spec.mtls: appears twice\nstdin:7: " + in + "kin: unknown field", []string{"n"}},
		"label not a string":   {pa("  selector: {matchLabels: {v: 1}}\n"), "must be a string, not the number 1", []string{"n"}},
		"ports, no selector":   {pa("  portLevelMtls: {80: {mode: STRICT}}\n"), in, []string{"n"}},
		"star in selector":     {pa("  selector: {matchLabels: {app: \"*\"}}\n"), in, []string{"n"}},
		"metadata misspelt":    {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, nmespace: n}\n", "metadata.nmespace: unknown field", []string{""}},
		"no name":              {"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: n}\n", "metadata.name: missing", []string{"n"}},
		"unknown version":      {"apiVersion: security.istio.io/v2\nkind: PeerAuthentication\nmetadata: {name: p}\n", "version \"v2\"", []string{"default"}},
		"misspelt kind":        {"apiVersion: security.istio.io/v1\nkind: PeerAuthentification\nmetadata: {name: p}\n", "was PeerAuthentication meant", []string{"default"}},
		"no kind":              {"metadata: {name: p, namespace: n}\n", "apiVersion: missing", []string{"n"}},
		"no mapping":           {"- a\n", "must be a mapping", []string{""}},
		"broken YAML":          {pa("  mtls: {mode\n"), "stdin:", []string{""}},
		"broken, namespace":    {"kind: PeerAuthentication\nmetadata:\n  name: p\n  namespace: n\nspec: {\n", "stdin:", []string{"n"}},
		"broken Pod":           {"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: maybe}\n", "stdin:4: document 1: Pod default/p: spec.hostNetwork: a string cannot be read as bool", nil},
		"field of a Pod twice": {"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: a, nodeName: b}\n", "stdin:4: document 1: Pod default/p: spec.nodeName: appears twice", nil},
		"tag in a Pod":         {"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: !!binary x}]}\n", "spec.containers[0].name: tag !!binary has no meaning", nil},
		"broken Pod's YAML":    {"kind: Pod\nmetadata: {\n", "stdin:", nil},
		"pod port":             {"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, ports: [{containerPort: 99999}]}]}\n", "spec.containers[0].ports[0].containerPort: port 99999", nil},
		"service port":         {"apiVersion: v1\nkind: Service\nmetadata: {name: p}\nspec: {ports: [{port: 80.5}]}\n", "Service default/p", nil},
		"rule mode":            {"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: p}\nspec: {host: h, trafficPolicy: {tls: {mode: MTLS}}}\n", "spec.trafficPolicy.tls.mode: unknown value", nil},
		"rule port 80.0":       {"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: p}\nspec: {host: h, trafficPolicy: {portLevelSettings: [{port: {number: 80.0}}]}}\n", "number: must be a whole number from 0 on, not the number 80.0", nil},
		"rule, newer field":    {"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: p}\nspec: {host: h, future: 1}\n", "stdin:4: document 1: DestinationRule default/p: spec.future: unknown field", nil},
		"rule port":            {"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: p}\nspec: {host: h, trafficPolicy: {portLevelSettings: [{port: {number: 70000}}]}}\n", "port.number 70000", nil},
		"alias bomb": {"kind: PeerAuthentication\na: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
			"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n", "unfold to too much", []string{""}},
		"alias of itself": {"kind: PeerAuthentication\na: &a [*a]\n", "unfold to too much", []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			r := readText(tc.text)
			if got := messages(r); !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if len(r.Objects) != 0 {
				t.Errorf("read all the same: %v", r.Objects)
			}
			if !slices.Equal(r.UnreadablePolicies, tc.unread) {
				t.Errorf("unreadable policies %q, want %q", r.UnreadablePolicies, tc.unread)
			}
		})
	}
}

const manyDocuments = `# a comment before all
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data:
  text: |
    kind: Pod
    --- no marker
---
this: [is broken
---
# nothing
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {app: x}, clusterIPs: [10.96.0.1],
    ports: [{name: http, port: 80, targetPort: web}, {port: 81, targetPort: 8081}, {port: 53, protocol: UDP}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: x}, annotations: {culvert.dev/netns: /run/netns/a}},
    spec: {serviceAccountName: sa, nodeName: node, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]},
    status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: unready, labels: {app: x}}, status: {podIP: 10.0.0.2, conditions: [{type: Ready, status: "False"}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: leaving, labels: {app: x}, deletionTimestamp: 2024-01-01T00:00:00Z}, status: {podIP: 10.0.0.3}}
- {apiVersion: v1, kind: Pod, metadata: {name: ended, labels: {app: x}}, status: {phase: Succeeded, podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: other, labels: {app: y}}, status: {podIP: 10.0.0.4}}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: x}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a}
`

func TestReadDocuments(t *testing.T) {
	r := readText(manyDocuments)
	if r.Skipped["ConfigMap"] != 1 || len(r.Skipped) != 1 {
		t.Errorf("skipped: %v", r.Skipped)
	}
	if len(r.Pods) != 5 || len(r.Services) != 2 || len(r.Namespaces) != 1 {
		t.Fatalf("%d pods, %d services, %d namespaces", len(r.Pods), len(r.Services), len(r.Namespaces))
	}
	if a := r.Pods[0]; a.NetnsPath != "/run/netns/a" || a.ServiceAccount != "sa" || a.Node != "node" || len(a.Addresses) != 2 || a.Ports["web"] != 8080 {
		t.Errorf("pod: %+v", a)
	}
	got := map[string]string{}
	for _, s := range r.Services {
		for _, p := range s.Ports {
			got[fmt.Sprintf("%s:%d", s.Name, p.Port)] = fmt.Sprint(p.Endpoints)
		}
	}
	want := map[string]string{
		"s:80": "[10.0.0.1:8080]", "s:81": "[10.0.0.1:8081]", "headless:8080": "[10.0.0.1:8080 [fd00::1]:8080]",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	text := messages(r)
	for _, want := range []string{"stdin:1", "document 3: ", "stdin:37: document 7: Pod default/a: is already defined at stdin:24, document 5"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestReadRule(t *testing.T) {
	r := readText(`
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: r, namespace: n}
spec:
  host: s
  exportTo: ["."]
  workloadSelector: {matchLabels: {app: x}}
  subsets: [{name: v1, labels: {version: "1"}}]
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 1.5s}}
    tls: {mode: MUTUAL, sni: x, insecureSkipVerify: true}
    portLevelSettings:
    - {port: {number: 80}, tls: {mode: ISTIO_MUTUAL, sni: y}, connectionPool: {tcp: {maxConnections: 1}}}
    - {port: {number: 81}}
`)
	if m := messages(r); m != "" {
		t.Fatal(m)
	}
	want := policy.DestinationRule{
		Namespace: "n", Name: "r", Host: "s", ExportTo: []string{"."}, Selector: map[string]string{"app": "x"},
		TLS:          &policy.ClientTLS{Mode: policy.TLSMutual, SNI: "x", InsecureSkipVerify: true},
		PortTLS:      map[uint16]*policy.ClientTLS{80: {Mode: policy.TLSIstioMutual, SNI: "y"}, 81: nil},
		UnusedFields: []string{"spec.subsets", "spec.trafficPolicy.loadBalancer", "spec.trafficPolicy.portLevelSettings[0].connectionPool"},
	}
	if d := cmp.Diff([]policy.DestinationRule{want}, r.Rules); d != "" {
		t.Error(d)
	}
}

func TestReadFolder(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml": namespaced("a"), "b.yml": namespaced("b"), "c.json": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c"}}`,
		".d.yaml": namespaced("d"), "e.yaml~": namespaced("e"), "f.txt": namespaced("f"),
	} {
		write(t, filepath.Join(dir, name), text)
	}
	r := Read([]string{dir, filepath.Join(dir, "a.yaml"), filepath.Join(dir, "missing.yaml")}, nil)
	var names []string
	for _, n := range r.Namespaces {
		names = append(names, n.Name)
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("read %v", names)
	}
	if len(r.Errors) != 1 || !strings.Contains(r.Errors[0].Error(), "missing.yaml: open: no such file") {
		t.Errorf("errors: %v", r.Errors)
	}
}

func namespaced(name string) string {
	return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n"
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestManyErrors: a spec of nothing but errors costs neither minutes nor a screen for each.
func TestManyErrors(t *testing.T) {
	var b strings.Builder
	b.WriteString("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n")
	for i := range 5000 {
		fmt.Fprintf(&b, "  f%d: 1\n", i)
	}
	r := readText(b.String())
	if len(r.Errors) != maxErrors+1 || !strings.Contains(messages(r), "spec: 4950 more errors") {
		t.Errorf("%d errors: %s", len(r.Errors), messages(r))
	}
}

// FuzzRead: whatever stands between two good documents, it ends, and both are read.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		manyDocuments, "", "---", "a: [", "%YAML 1.2\n---\n", "a: &a [*a]", "{\"a\":", "\t- x", "kind: List\nitems: [[]]",
		"? [a]\n: b", "<<: {a: b}", "a: !!binary x", "\r---\r", "\xff\xfe", "...\n...\n", "a: |\n", "'", "#", "- - - -",
		"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {portLevelMtls: {1e3: {}}}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), "good") {
			t.Skip("the input may name one of the two documents that are counted")
		}
		r := readText(namespaced("good-1") + "---\n" + string(data) + "\n---\n" + namespaced("good-2"))
		found := 0
		for _, n := range r.Namespaces {
			if n.Name == "good-1" || n.Name == "good-2" {
				found++
			}
		}
		if found != 2 {
			t.Errorf("%d of 2 good documents; errors: %s", found, messages(r))
		}
	})
}
