package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
)

// evil would clear the terminal, fake a line, and turn what follows round.
const evil = "\x1b[2J\x9b31m\rx\nFAKE\u202e"

// poison puts evil into every string below v, and one of everything into what may hold several.
func poison(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(evil)
	case reflect.Uint16, reflect.Uint64, reflect.Uint32:
		v.SetUint(7)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		poison(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		poison(v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		poison(key)
		poison(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				poison(v.Field(i))
			}
		}
	}
}

func poisoned[T any]() *T {
	v := new(T)
	poison(reflect.ValueOf(v).Elem())
	return v
}

// TestNobodyElseSteersTheTerminal has agents answer with nothing but control characters.
func TestNobodyElseSteersTheTerminal(t *testing.T) {
	flow := poisoned[nodeFlow]()
	flow.Carried = evil
	for name, show := range map[string]func(*screen){
		"status": func(s *screen) {
			(&nodesStatus{[]nodeStatus{*poisoned[nodeStatus](), {Node: evil, Status: poisoned[admin.Status]()}, {Node: evil}}}).show(s, time.Now())
		},
		"describe pod":     func(s *screen) { showPod(s, poisoned[admin.PodDescription]()) },
		"describe service": func(s *screen) { showService(s, poisoned[admin.ServiceDescription]()) },
		"can":              func(s *screen) { showVerdict(s, poisoned[admin.Verdict]()) },
		"certs":            func(s *screen) { _ = writeCertificates(&s.text, poisoned[admin.Certificates]()) },
		"certs verify":     func(s *screen) { _ = poisoned[verified]().write(&s.text) },
		"certs as PEM":     func(s *screen) { _ = writePEM(&s.text, poisoned[admin.Certificates](), true) },
		"ca status":        func(s *screen) { _ = writeCAStatus(&s.text, poisoned[kube.Status](), time.Now()) },
		"policy explain":   func(s *screen) { showExplained(s, []explained{*poisoned[explained]()}, true) },
		"policy lint":      func(s *screen) { s.text.WriteString(remarksText([]remark{*poisoned[remark]()})) },
		"readiness": func(s *screen) {
			var b bytes.Buffer
			r := poisoned[readinessReport]()
			r.Verdict = verdictReady // which is ours, not an agent's
			_ = writeReadiness(&b, r, s.wide)
			s.text.Write(b.Bytes())
		},
		"flows": func(s *screen) {
			var b bytes.Buffer
			p := &flowPrinter{w: &b, notes: &b, output: map[bool]string{false: "table", true: "wide"}[s.wide]}
			_ = p.print([]nodeFlow{*flow})
			p.note("%s", evil)
			s.text.Write(b.Bytes())
		},
	} {
		for _, wide := range []bool{false, true} {
			s := &screen{wide: wide}
			show(s)
			text := s.text.String()
			if text == "" || strings.ContainsAny(text, "\x1b\r\u009b\u202e") || strings.Contains(text, "\nFAKE") {
				t.Errorf("%s, wide %v: %q", name, wide, text)
			}
		}
	}
}

// TestNoFileSteersTheTerminal has manifests with control characters wherever they are repeated: in kinds, names, keys and
// values.
func TestNoFileSteersTheTerminal(t *testing.T) {
	const escaped = `"a\u001b[2J\u009b31m\rx\nFAKE\u202e"`
	const head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: n}\n"
	path := filepath.Join(t.TempDir(), "evil.yaml")
	text := strings.Join([]string{
		head + "spec: {portLevelMtls: {" + escaped + ": {mode: STRICT}}}\n",
		head + "spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {80: {" + escaped + ": STRICT}}}\n",
		head + "spec: {mtls: {mode: " + escaped + "}}\n",
		strings.Replace(head, "name: p", "name: "+escaped, 1),
		"apiVersion: v1\nkind: " + escaped + "\nmetadata: {name: p, namespace: n}\n",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: n, labels: {" + escaped + ": " + escaped + "}}\nspec: {containers: [{name: " + escaped + "}]}\n",
	}, "---\n")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"policy", "lint", "-f", path}, {"policy", "explain", "-f", path, "-o", "wide"}, {"readiness", "n", "--policy", path},
	} {
		var out bytes.Buffer
		c := newRootCommand()
		c.SetArgs(args)
		c.SetOut(&out)
		c.SetErr(&out)
		err := c.ExecuteContext(t.Context())
		if err == nil {
			t.Errorf("%v: no error", args)
		}
		said := out.String() + printable(fmt.Sprint(err))
		if !strings.Contains(said, "FAKE") || strings.ContainsAny(said, "\x1b\r\u009b\u202e") || strings.Contains(said, "\nFAKE") {
			t.Errorf("%v: %q", args, said)
		}
	}
}
