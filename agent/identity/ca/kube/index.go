package kube

import (
	"net/netip"
	"sync"
	"unique"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// place is all that is kept of a pod. The same few names occur in very many.
type place struct{ node, namespace, account unique.Handle[string] }

func placeOf(node, namespace, account string) place {
	return place{unique.Make(node), unique.Make(namespace), unique.Make(account)}
}

// podKey names a pod by its UID: two pods may have had the same name.
type podKey string

// index counts the live pods of each service account on each node. It is the store of a reflector.
type index struct {
	mu     sync.RWMutex
	agent  func(namespace, account string) bool
	pods   map[podKey]place
	counts map[place]int
	agents map[podKey][]netip.Addr // those of the pods of agents
	synced bool
}

func newIndex(agent func(namespace, account string) bool) *index {
	return &index{agent: agent, pods: map[podKey]place{}, counts: map[place]int{}, agents: map[podKey][]netip.Addr{}}
}

// addresses returns those of an agent's pod; none if it is not known.
func (x *index) addresses(uid string) []netip.Addr {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.agents[podKey(uid)]
}

// runs reports whether a live pod of the account is known on the node, and whether all pods are known.
func (x *index) runs(node, namespace, name string) (found, synced bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.counts[placeOf(node, namespace, name)] > 0, x.synced
}

func (x *index) isSynced() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.synced
}

// Add implements cache.ReflectorStore.
func (x *index) Add(obj any) error { return x.Update(obj) }

// Update implements cache.ReflectorStore.
func (x *index) Update(obj any) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.set(obj)
	return nil
}

// Delete implements cache.ReflectorStore.
func (x *index) Delete(obj any) error {
	if pod, ok := obj.(*core.Pod); ok {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.forget(podKey(pod.UID))
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (x *index) Replace(all []any, _ string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.pods)
	clear(x.counts)
	clear(x.agents)
	for _, obj := range all {
		x.set(obj)
	}
	x.synced = true
	return nil
}

// Resync implements cache.ReflectorStore.
func (x *index) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a list in the making holds no more than what is needed.
func (x *index) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if pod, ok := obj.(*core.Pod); ok {
			x.trim(pod)
		}
		return obj, nil
	}
}

func (x *index) set(obj any) {
	pod, ok := obj.(*core.Pod)
	if !ok {
		return
	}
	key := podKey(pod.UID)
	x.forget(key)
	if x.isAgent(pod) {
		x.agents[key] = addresses(pod)
	}
	if !holdsIdentity(pod) {
		return
	}
	p := placeOf(pod.Spec.NodeName, pod.Namespace, serviceAccount(pod))
	x.pods[key] = p
	x.counts[p]++
}

func (x *index) isAgent(pod *core.Pod) bool { return x.agent(pod.Namespace, serviceAccount(pod)) }

// addresses are those from which a pod can speak: its own, and its node's.
func addresses(pod *core.Pod) []netip.Addr {
	var all []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a.Unmap())
		}
	}
	for _, a := range pod.Status.PodIPs {
		add(a.IP)
	}
	for _, a := range pod.Status.HostIPs {
		add(a.IP)
	}
	return all
}

func (x *index) forget(key podKey) {
	delete(x.agents, key)
	p, known := x.pods[key]
	if !known {
		return
	}
	delete(x.pods, key)
	if x.counts[p]--; x.counts[p] == 0 {
		delete(x.counts, p)
	}
}

// holdsIdentity reports whether a pod lets its node have its identity: it is bound to a node and has not ended.
// One with the host's network is never in the mesh, so nobody needs its identity there; the service accounts of
// what runs on every node are often powerful.
func holdsIdentity(pod *core.Pod) bool {
	return pod.Spec.NodeName != "" && !pod.Spec.HostNetwork &&
		pod.Status.Phase != core.PodSucceeded && pod.Status.Phase != core.PodFailed
}

func serviceAccount(pod *core.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}

// trim leaves of a pod what index and reflector read.
func (x *index) trim(pod *core.Pod) {
	status := core.PodStatus{Phase: pod.Status.Phase}
	if x.isAgent(pod) {
		status.PodIPs, status.HostIPs = pod.Status.PodIPs, pod.Status.HostIPs
	}
	*pod = core.Pod{
		ObjectMeta: meta.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			Annotations: initialEventsEnd(pod),
		},
		Spec: core.PodSpec{
			NodeName: pod.Spec.NodeName, ServiceAccountName: pod.Spec.ServiceAccountName, HostNetwork: pod.Spec.HostNetwork,
		},
		Status: status,
	}
}

// initialEventsEnd keeps the mark by which a streamed list ends.
func initialEventsEnd(pod *core.Pod) map[string]string {
	if mark, ok := pod.Annotations[meta.InitialEventsAnnotationKey]; ok {
		return map[string]string{meta.InitialEventsAnnotationKey: mark}
	}
	return nil
}
