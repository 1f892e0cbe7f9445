package demo

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// podSpec is a pod of the walkthrough; every one of them serves HTTP on 9080 and 9090.
type podSpec struct {
	namespace, name, node string
	optedOut              bool
}

func (p podSpec) ref() string { return p.namespace + "/" + p.name }

// podSpecs puts clients and servers on the same node as well as on different ones.
func podSpecs() []podSpec {
	return []podSpec{
		{namespace: "default", name: "productpage", node: "a"},
		{namespace: "default", name: "reviews", node: "a"},
		{namespace: "web", name: "frontend", node: "a"},
		{namespace: "audit", name: "auditor", node: "a"},
		{namespace: "test", name: "nginx", node: "b"},
		{namespace: "test", name: "legacy-app", node: "b", optedOut: true},
		{namespace: "default", name: "payment", node: "b"},
	}
}

// identityOf is the SPIFFE ID that a pod of the walkthrough has to prove.
func identityOf(ref string) string {
	namespace, name, _ := strings.Cut(ref, "/")
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + name
}

// serviceAddress is the address of a pod's Service, which is named like the pod.
func serviceAddress(ref string, version int) netip.Addr {
	i := slices.IndexFunc(podSpecs(), func(p podSpec) bool { return p.ref() == ref })
	if version == 6 {
		return netip.MustParseAddr(fmt.Sprintf("fd77:0:0:ffff::%x", 10+i))
	}
	return netip.AddrFrom4([4]byte{10, 77, 255, byte(10 + i)})
}

// writeCluster writes namespaces, pods and Services.
func (m *Mesh) writeCluster() error {
	type namespace struct {
		Name     string
		Enrolled bool
	}
	type pod struct {
		Namespace, Name, Node, NetnsPath, IP4, IP6, Service4, Service6 string
		OptedOut                                                       bool
	}
	data := struct {
		Namespaces []namespace
		Pods       []pod
	}{Namespaces: []namespace{{"default", true}, {"test", true}, {"web", true}, {"audit", false}, {"istio-system", false}}}
	for _, s := range podSpecs() {
		p := m.pods[s.ref()]
		data.Pods = append(data.Pods, pod{
			Namespace: s.namespace, Name: s.name, Node: s.node, NetnsPath: p.NetnsPath, OptedOut: s.optedOut,
			IP4: p.IP4.String(), IP6: p.IP6.String(),
			Service4: serviceAddress(s.ref(), 4).String(), Service6: serviceAddress(s.ref(), 6).String(),
		})
	}
	t, err := template.ParseFS(manifests, "manifests/cluster.yaml")
	if err != nil {
		return fmt.Errorf("demo: manifest: %w", err)
	}
	var text bytes.Buffer
	if err := t.Execute(&text, data); err != nil {
		return fmt.Errorf("demo: manifest: %w", err)
	}
	return m.WriteManifest("cluster.yaml", text.Bytes())
}

// setPolicies makes the config folder hold exactly these policies besides the cluster, and
// reports whether it had to change anything.
func (m *Mesh) setPolicies(names []string) (changed bool, err error) {
	for _, name := range names {
		text, err := manifests.ReadFile("manifests/" + name + ".yaml")
		if err != nil {
			return changed, fmt.Errorf("demo: manifest: %w", err)
		}
		if _, err := os.Stat(filepath.Join(m.configDir, name+".yaml")); err == nil {
			continue
		}
		if err := m.WriteManifest(name+".yaml", text); err != nil {
			return changed, err
		}
		changed = true
	}
	present, err := os.ReadDir(m.configDir)
	if err != nil {
		return changed, fmt.Errorf("demo: config folder: %w", err)
	}
	for _, e := range present {
		name := strings.TrimSuffix(e.Name(), ".yaml")
		if name == "cluster" || slices.Contains(names, name) {
			continue
		}
		if err := os.Remove(filepath.Join(m.configDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, fmt.Errorf("demo: config folder: %w", err)
		}
		changed = true
	}
	return changed, nil
}

// WriteManifest replaces a manifest as editors and config managers do it: whole, by renaming.
func (m *Mesh) WriteManifest(name string, text []byte) error {
	path := filepath.Join(m.configDir, name)
	temporary := filepath.Join(m.configDir, "."+name)
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return fmt.Errorf("demo: write manifest: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("demo: write manifest: %w", err)
	}
	return nil
}

// ReadManifest returns what stands in the config folder under that name.
func (m *Mesh) ReadManifest(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(m.configDir, name))
}

// RemoveManifest takes a manifest out of the config folder.
func (m *Mesh) RemoveManifest(name string) error {
	return os.Remove(filepath.Join(m.configDir, name))
}
