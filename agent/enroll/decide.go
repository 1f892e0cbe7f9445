package enroll

import (
	"slices"

	"github.com/culvert-mesh/culvert/agent/source"
)

// The labels, annotations and values by which a namespace or a pod asks to be in the mesh, or not to be.
const (
	dataplaneLabel = "istio.io/dataplane-mode"
	injectionLabel = "istio-injection"
	injectKey      = "sidecar.istio.io/inject"
	proxyContainer = "istio-proxy"
)

// Options are the switches of Decide.
type Options struct {
	// InjectionLabel makes the namespace label istio-injection=enabled count as a request to be enrolled.
	InjectionLabel bool
}

// Decision says whether a pod is enrolled, and why.
type Decision struct {
	Enrolled bool
	Reason   string
	// Refused says that the namespace or the pod asks for it and something else than its owner's word stands against it.
	Refused bool
}

// Decide tells whether a pod of that namespace is to be enrolled. Whatever opts out is looked at first: it
// wins over every request. A nil namespace is one without labels.
func Decide(ns *source.Namespace, pod *source.Pod, o Options) Decision {
	if reason := optedOut(pod); reason != "" {
		return Decision{Reason: reason}
	}
	asked := requested(ns, pod, o)
	if reason := unfit(pod); reason != "" {
		return Decision{Reason: reason, Refused: asked != ""}
	}
	if asked != "" {
		return Decision{Enrolled: true, Reason: asked}
	}
	return Decision{Reason: "neither namespace nor pod asks for it"}
}

func optedOut(pod *source.Pod) string {
	switch {
	case pod.Labels[dataplaneLabel] == "none":
		return "opted out by pod label " + dataplaneLabel + "=none"
	case pod.Labels[injectKey] == "false":
		return "opted out by pod label " + injectKey + "=false"
	case pod.Annotations[injectKey] == "false":
		return "opted out by pod annotation " + injectKey + "=false"
	}
	return ""
}

func unfit(pod *source.Pod) string {
	switch {
	case pod.HostNetwork:
		return "hostNetwork"
	case slices.Contains(pod.Containers, proxyContainer):
		return "has an " + proxyContainer + " container"
	}
	return ""
}

func requested(ns *source.Namespace, pod *source.Pod, o Options) string {
	if pod.Labels[dataplaneLabel] == "ambient" {
		return "pod label " + dataplaneLabel + "=ambient"
	}
	if ns == nil {
		return ""
	}
	if ns.Labels[dataplaneLabel] == "ambient" {
		return "namespace label " + dataplaneLabel + "=ambient"
	}
	if o.InjectionLabel && ns.Labels[injectionLabel] == "enabled" {
		return "namespace label " + injectionLabel + "=enabled"
	}
	return ""
}
