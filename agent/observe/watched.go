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
	// Elsewhere are the other nodes that have pods of it, and since when they do, as far as this node knows.
	Elsewhere map[string]time.Time `json:"elsewhere,omitempty"`
}

// replaced are labels that differ between a pod and the one that takes its place.
func replaced(label string) bool {
	switch label {
	case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "apps.kubernetes.io/pod-index",
		"statefulset.kubernetes.io/pod-name", "controller-uid", "batch.kubernetes.io/controller-uid", "job-name",
		"batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index",
		"app.kubernetes.io/version", "helm.sh/chart": // of a release
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

// Enrolled tells which workloads there are on the node, by the cookies of their network namespaces; lingering are those of
// pods that are no object any more and may still run.
func (r *Recorder) Enrolled(all map[uint64]Workload, lingering ...uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.seen.now = make(map[uint64]bool, len(all))
	for cookie, w := range all {
		r.seen.now[cookie] = true
		r.seen.enrolled[cookie] = r.seen.workload(w, now)
	}
	for _, cookie := range lingering {
		r.seen.now[cookie] = true
	}
}

// Unwatched tells of a pod that runs and is not enrolled. It matters if others of its workload are, or were.
func (r *Recorder) Unwatched(w Workload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.seen.workloads[w.Key()]; known != nil {
		known.Blind = time.Now()
	}
}

// Unseen tells of an enrolled workload whose connections could not be looked at.
func (r *Recorder) Unseen(cookie uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.seen.enrolled[cookie]; known != nil {
		known.Blind = time.Now()
	}
}

// Missed tells that plaintext connections may have come of which nothing is known.
func (r *Recorder) Missed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen.dropped = time.Now()
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

// Elsewhere tells which other nodes have pods of which workload, by Key.
func (r *Recorder) Elsewhere(nodes map[string]map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for key, w := range r.seen.workloads {
		for node := range w.Elsewhere {
			if !nodes[key][node] {
				w.leave(node, now)
				delete(w.Elsewhere, node)
			}
		}
		for node := range nodes[key] {
			if w.Elsewhere == nil {
				w.Elsewhere = map[string]time.Time{}
			}
			if w.Elsewhere[node].IsZero() {
				w.Elsewhere[node] = now
			}
		}
		maps.DeleteFunc(w.Left, func(node string, at time.Time) bool { return nodes[key][node] || now.Sub(at) > r.window })
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
		if until := w.Left[oldest]; until.After(w.Blind) {
			w.Blind = until // nobody asks that node any more
		}
		delete(w.Left, oldest)
	}
}

// Nodes are the other ones that have pods of the workload, or had some since then, and a time at which they did.
func (w *Watched) Nodes(since time.Time) map[string]time.Time {
	nodes := maps.Clone(w.Elsewhere)
	for node, until := range w.Left {
		if nodes == nil {
			nodes = map[string]time.Time{}
		}
		if !until.Before(since) {
			nodes[node] = until
		}
	}
	return nodes
}

// Watched are the workloads that are watched, or were within the window.
func (r *Recorder) Watched() []Watched {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Watched, 0, len(r.seen.workloads))
	for _, w := range r.seen.workloads {
		copied := *w
		copied.Left, copied.Elsewhere = maps.Clone(w.Left), maps.Clone(w.Elsewhere)
		all = append(all, copied)
	}
	slices.SortFunc(all, func(a, b Watched) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Key(), b.Key()))
	})
	return all
}
