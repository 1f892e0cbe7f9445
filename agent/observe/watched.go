package observe

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxLeft bounds the nodes that a workload's pods have left, of which the oldest go first.
const maxLeft = 64

// Watched is a workload of this node, and what is known of how well it was watched.
type Watched struct {
	Workload
	Since time.Time `json:"since"`          // when it was first enrolled here
	Seen  time.Time `json:"seen"`           // when it was last
	Blind time.Time `json:"blind,omitzero"` // until when a pod of it ran here that nobody watched
	// Left are the other nodes that had pods of it and have none any more, and until when: what those nodes saw may be
	// gone with them.
	Left map[string]time.Time `json:"left,omitempty"`

	elsewhere map[string]bool // other nodes that have pods of it
}

// replaced are labels that differ between a pod and the one that takes its place.
func replaced(label string) bool {
	switch label {
	case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "apps.kubernetes.io/pod-index",
		"statefulset.kubernetes.io/pod-name", "controller-uid", "batch.kubernetes.io/controller-uid", "job-name",
		"batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index":
		return true
	}
	return false
}

// Lasting are the labels that a pod shares with the one that takes its place.
func Lasting(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	maps.DeleteFunc(labels, func(name, _ string) bool { return replaced(name) })
	return labels
}

// Passing returns the labels of a selector that a Workload is not known by, because they end with a pod.
func Passing(selector map[string]string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(selector)), func(name string) bool { return !replaced(name) })
}

// Key is the same for a pod and the one that takes its place, on any node.
func (w *Workload) Key() string {
	parts := []string{w.Namespace, w.ServiceAccount}
	for _, name := range slices.Sorted(maps.Keys(w.Labels)) {
		if !replaced(name) {
			parts = append(parts, strconv.Quote(name)+"="+strconv.Quote(w.Labels[name]))
		}
	}
	return strings.Join(parts, "/")
}

func (o *observations) workload(w Workload, now time.Time) *Watched {
	key := w.Key()
	known := o.workloads[key]
	if known == nil {
		w.Labels = Lasting(w.Labels)
		known = &Watched{Workload: w, Since: now}
		o.workloads[key] = known
	}
	known.Pod, known.Seen = w.Pod, now
	return known
}

// Enrolled tells which workloads there are on the node, by the cookies of their network namespaces.
func (r *Recorder) Enrolled(all map[uint64]Workload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.seen.now = make(map[uint64]bool, len(all))
	for cookie, w := range all {
		r.seen.now[cookie] = true
		r.seen.enrolled[cookie] = r.seen.workload(w, now)
	}
}

// Arrived tells of a workload before Enrolled does. watched says that the kernel has counted its connections from the
// first one on.
func (r *Recorder) Arrived(cookie uint64, w Workload, watched bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	known := r.seen.workload(w, now)
	if !watched {
		known.Blind = now
	}
	if r.seen.now == nil {
		r.seen.now = map[uint64]bool{}
	}
	r.seen.now[cookie], r.seen.enrolled[cookie] = true, known
}

// Elsewhere tells which other nodes have pods of which workload, by Key. The maps are the Recorder's from then on.
func (r *Recorder) Elsewhere(nodes map[string]map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for key, w := range r.seen.workloads {
		for node := range w.elsewhere {
			if !nodes[key][node] {
				w.leave(node, now)
			}
		}
		w.elsewhere = nodes[key]
		maps.DeleteFunc(w.Left, func(node string, at time.Time) bool { return w.elsewhere[node] || now.Sub(at) > r.window })
	}
}

func (w *Watched) leave(node string, now time.Time) {
	if w.Left == nil {
		w.Left = map[string]time.Time{}
	}
	w.Left[node] = now
	if len(w.Left) > maxLeft {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(w.Left)), func(a, b string) int {
			return cmp.Or(w.Left[a].Compare(w.Left[b]), cmp.Compare(a, b))
		})
		delete(w.Left, oldest)
	}
}

// Nodes are the other ones that have pods of the workload, or had some since then.
func (w *Watched) Nodes(since time.Time) []string {
	nodes := slices.Collect(maps.Keys(w.elsewhere))
	for node, until := range w.Left {
		if !until.Before(since) {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// Watched are the workloads that are watched, or were within the window.
func (r *Recorder) Watched() []Watched {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Watched, 0, len(r.seen.workloads))
	for _, w := range r.seen.workloads {
		copied := *w
		copied.Left = maps.Clone(w.Left)
		all = append(all, copied)
	}
	slices.SortFunc(all, func(a, b Watched) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Key(), b.Key()))
	})
	return all
}
