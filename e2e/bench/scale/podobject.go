package main

import (
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/agent/source"
)

// podObject is a pod as a Deployment makes it: about as large as those of real clusters, where kubelet, scheduler
// and admission have added their part.
func (s *slot) podObject() *core.Pod {
	yes := true
	hash := "6d4cf56db6"
	labels := map[string]string{
		"app": s.app, "version": "v1", "pod-template-hash": hash, "app.kubernetes.io/managed-by": "Helm",
		"app.kubernetes.io/part-of": s.namespace,
	}
	if s.local != nil {
		labels[placeLabel] = s.place() // its own policy selects it by this
	}
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{
			Namespace: s.namespace, Name: s.name(), GenerateName: s.app + "-" + hash + "-",
			Labels: labels,
			Annotations: map[string]string{
				source.RedirectionAnnotation:        source.RedirectionValue,
				"kubectl.kubernetes.io/restartedAt": "2025-06-01T12:00:00Z",
				"prometheus.io/port":                "9090", "prometheus.io/scrape": "true",
				"checksum/config": "0d5a6ff7a7e5f4aa6a3b3cb4f2e2f9f3f37a26a6c1d3f4f5a1b2c3d4e5f60718",
			},
			OwnerReferences: []meta.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: s.app + "-" + hash,
				UID: types.UID(fmt.Sprintf("5f0f7d0e-25c4-4b0a-9d3f-%012d", s.number)), Controller: &yes, BlockOwnerDeletion: &yes,
			}},
		},
		Spec: core.PodSpec{
			NodeName: s.node, ServiceAccountName: s.app, SchedulerName: "default-scheduler",
			Containers: []core.Container{s.container()},
			Tolerations: []core.Toleration{
				{Key: core.TaintNodeNotReady, Operator: core.TolerationOpExists, Effect: core.TaintEffectNoExecute},
				{Key: core.TaintNodeUnreachable, Operator: core.TolerationOpExists, Effect: core.TaintEffectNoExecute},
			},
			Volumes: []core.Volume{tokenVolume()},
		},
	}
}

func (s *slot) container() core.Container {
	probe := func(path string) *core.Probe {
		return &core.Probe{
			ProbeHandler:  core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: path, Port: intstr.FromString("http")}},
			PeriodSeconds: 10, TimeoutSeconds: 2,
		}
	}
	return core.Container{
		Name: s.app, Image: "registry.example.com/shop/" + s.app + ":1.24.7",
		Ports: []core.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}},
		Env: []core.EnvVar{
			{Name: "POD_IP", ValueFrom: &core.EnvVarSource{FieldRef: &core.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "DATABASE_URL", Value: "postgres://database.shop.svc.cluster.local:5432/shop?sslmode=disable"},
			{Name: "LOG_LEVEL", Value: "info"},
		},
		Resources: core.ResourceRequirements{
			Requests: core.ResourceList{core.ResourceCPU: resource.MustParse("100m"), core.ResourceMemory: resource.MustParse("128Mi")},
			Limits:   core.ResourceList{core.ResourceMemory: resource.MustParse("256Mi")},
		},
		LivenessProbe: probe("/healthz"), ReadinessProbe: probe("/readyz"),
		VolumeMounts: []core.VolumeMount{{
			Name: "kube-api-access-x7k2p", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount",
		}},
	}
}

// tokenVolume is what the ServiceAccount admission adds to each pod.
func tokenVolume() core.Volume {
	life := int64(3607)
	return core.Volume{Name: "kube-api-access-x7k2p", VolumeSource: core.VolumeSource{Projected: &core.ProjectedVolumeSource{
		Sources: []core.VolumeProjection{
			{ServiceAccountToken: &core.ServiceAccountTokenProjection{ExpirationSeconds: &life, Path: "token"}},
			{ConfigMap: &core.ConfigMapProjection{
				LocalObjectReference: core.LocalObjectReference{Name: "kube-root-ca.crt"},
				Items:                []core.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &core.DownwardAPIProjection{Items: []core.DownwardAPIVolumeFile{{
				Path: "namespace", FieldRef: &core.ObjectFieldSelector{FieldPath: "metadata.namespace"},
			}}}},
		},
	}}}
}

// running is what kubelet writes when the pod runs.
func (s *slot) running() core.PodStatus {
	now := meta.NewTime(time.Now().Truncate(time.Second))
	status := core.PodStatus{
		Phase: core.PodRunning, QOSClass: core.PodQOSBurstable, StartTime: &now,
		HostIP: "10.64.0.1", HostIPs: []core.HostIP{{IP: "10.64.0.1"}},
		ContainerStatuses: []core.ContainerStatus{{
			Name: s.app, Ready: true, Started: new(bool), State: core.ContainerState{Running: &core.ContainerStateRunning{StartedAt: now}},
			Image:       "registry.example.com/shop/" + s.app + ":1.24.7",
			ImageID:     "registry.example.com/shop/" + s.app + "@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
			ContainerID: fmt.Sprintf("containerd://8c3e5a9d9b6f4c0fa8d7e6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f9%08d", s.number),
		}},
	}
	*status.ContainerStatuses[0].Started = true
	for _, kind := range []core.PodConditionType{
		core.PodReadyToStartContainers, core.PodInitialized, core.PodReady, core.ContainersReady, core.PodScheduled,
	} {
		status.Conditions = append(status.Conditions, core.PodCondition{Type: kind, Status: core.ConditionTrue, LastTransitionTime: now})
	}
	for _, a := range s.addresses {
		status.PodIPs = append(status.PodIPs, core.PodIP{IP: a.String()})
	}
	status.PodIP = status.PodIPs[0].IP
	return status
}
