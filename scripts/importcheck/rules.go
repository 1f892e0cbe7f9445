package main

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// rule says what the packages below a folder may import of this module. Folders are relative to the
// module's root; a folder includes everything below it.
type rule struct {
	folder string
	allow  []string // beside the folder itself
	deny   []string // wins over allow and over the folder itself
	any    bool     // everything but deny
}

// moduleRules returns the rules in order: the first whose folder holds a package counts.
func moduleRules() []rule {
	return []rule{
		{folder: "policy"},
		{folder: "bpf"},
		{folder: "tunnel/control", allow: []string{"policy"}},
		{folder: "tunnel/hbone"},
		{folder: "tunnel", allow: []string{"policy"}},
		{folder: "agent/datapath", allow: []string{"agent", "bpf", "policy", "tunnel/control"}},
		{folder: "agent/enroll/cni"},
		{folder: "agent", allow: []string{"policy", "tunnel/control"}},
		{folder: "e2e", any: true, deny: []string{"cmd"}},
		{folder: "cmd/culvert-cni", allow: []string{"agent/enroll/cni"}},
		{folder: "cmd", any: true},
		{folder: "daemonset"},
		{folder: "scripts", allow: []string{"daemonset", "agent/source/kube/preflight"}},
	}
}

// foreignRules returns where in this module other modules may be imported that are not welcome everywhere.
func foreignRules() map[string][]string {
	kubernetes := []string{"agent/source", "agent/identity/ca/kube", "e2e/kind", "e2e/bench/scale"}
	return map[string][]string{
		"k8s.io": kubernetes, "istio.io": kubernetes,
		// Protocols that others speak too: the runtime's, and that of certificate authorities.
		"github.com/containernetworking/cni": {"cmd/culvert-cni", "agent/enroll/cniconf"},
		"k8s.io/cri-api":                     {"agent/enroll/cri", "e2e/bench/scale"},
		"istio.io/api/security":              {"agent/source", "agent/identity", "e2e/kind", "e2e/bench/scale"},
	}
}

// testFolders may be imported by every package's tests.
func testFolders() []string { return []string{"e2e/lab"} }

// topFolders returns the folders that the house has; bin holds what was built and is not committed.
func topFolders() []string {
	return []string{
		"cmd", "bpf", "agent", "tunnel", "policy", "daemonset", "scripts", "e2e", ".ci", ".git", "bin",
	}
}

// checkFolders returns a line for each folder that is not part of the house.
func checkFolders(entries []fs.DirEntry) []string {
	var problems []string
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(topFolders(), e.Name()) {
			problems = append(problems, fmt.Sprintf("%s/: a top-level folder that the design does not know", e.Name()))
		}
	}
	return problems
}

// checkImports returns a line for each import that a rule forbids.
func checkImports(module string, packages []goPackage) []string {
	var problems []string
	for _, p := range packages {
		from := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		problems = append(problems, checkPackage(module, from, p.Imports, false)...)
		problems = append(problems, checkPackage(module, from, slices.Concat(p.TestImports, p.XTestImports), true)...)
	}
	slices.Sort(problems)
	return slices.Compact(problems)
}

func checkPackage(module, from string, imports []string, test bool) []string {
	var problems []string
	for _, path := range imports {
		reason := ""
		if to, ours := strings.CutPrefix(path, module+"/"); ours {
			reason = forbidden(from, to, test)
		} else {
			reason = forbiddenForeign(from, path)
		}
		if reason != "" {
			problems = append(problems, fmt.Sprintf("%s imports %s: %s", from, path, reason))
		}
	}
	return problems
}

// forbidden returns why from may not import to, both of this module, or "".
func forbidden(from, to string, test bool) string {
	if test && withinAny(to, testFolders()) {
		return ""
	}
	for _, r := range moduleRules() {
		if !within(from, r.folder) {
			continue
		}
		switch {
		case withinAny(to, r.deny):
			return fmt.Sprintf("%s may not import %s", r.folder, strings.Join(r.deny, ", "))
		case r.any, within(to, r.folder), withinAny(to, r.allow):
			return ""
		case len(r.allow) == 0:
			return fmt.Sprintf("%s may import nothing else of this module", r.folder)
		default:
			return fmt.Sprintf("of this module, %s may import only itself and %s", r.folder, strings.Join(r.allow, ", "))
		}
	}
	return "no rule knows the importing package"
}

// forbiddenForeign returns why from may not import path of another module, or "".
func forbiddenForeign(from, path string) string {
	var longest string
	for prefix := range foreignRules() {
		if within(path, prefix) && len(prefix) > len(longest) {
			longest = prefix
		}
	}
	if folders := foreignRules()[longest]; longest != "" && !withinAny(from, folders) {
		return fmt.Sprintf("%s ends at %s", longest, strings.Join(folders, ", "))
	}
	return ""
}

func withinAny(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return within(path, f) })
}

// within reports whether path is folder or below it.
func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}
