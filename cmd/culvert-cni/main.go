// Command culvert-cni is a chained CNI plugin: it comes after the plugins that make a pod's network, and lets the
// pod start only when the agent of the node has answered that the pod is enforced, or is not to be enrolled.
//
// It does nothing itself and changes no network. It passes the result of the plugins before it on, and hands the
// pod's network namespace to the agent as an open descriptor. Nothing of what it does needs undoing when the agent
// is no longer installed: see DEL in commands.go.
package main

import (
	"os"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	p := plugin{stderr: os.Stderr}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: p.add, Check: p.check, Del: p.del, GC: p.gc, Status: p.status,
	}, version.VersionsStartingFrom("0.3.0"), "CNI plugin culvert-cni "+build())
}

// build returns what this binary was built from.
func build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "of unknown origin"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return info.Main.Version
}
