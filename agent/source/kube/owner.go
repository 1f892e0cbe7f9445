package kube

import (
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const templateHash = "pod-template-hash"

// ownerOf is the name of what people know a pod by, as Istio's metrics have it: its Deployment, StatefulSet, DaemonSet,
// CronJob or Job. The objects themselves are not read: their names follow from each other's.
func ownerOf(k *core.Pod) string {
	c := meta.GetControllerOfNoCopy(k)
	if c == nil {
		return ""
	}
	switch c.Kind {
	case "ReplicaSet":
		if hash := k.Labels[templateHash]; hash != "" {
			return strings.TrimSuffix(c.Name, "-"+hash)
		}
	case "Job":
		return withoutTime(c.Name)
	}
	return c.Name
}

// withoutTime takes off what a CronJob ends the names of its Jobs with: their time in minutes, of 8 to 10 digits.
func withoutTime(job string) string {
	at := strings.LastIndexByte(job, '-')
	if at < 1 {
		return job
	}
	digits := job[at+1:]
	if len(digits) < 8 || len(digits) > 10 || strings.Trim(digits, "0123456789") != "" {
		return job
	}
	return job[:at]
}
