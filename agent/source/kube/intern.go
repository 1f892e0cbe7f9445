package kube

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"unique"
)

// maxShared bounds how many different sets of labels are remembered in order to be shared.
const maxShared = 8192

// labelSets makes equal sets of labels one map: the pods of one template have the same. It forgets sets that were
// not asked for while maxShared others were.
type labelSets struct {
	mu             sync.Mutex
	recent, before map[string]map[string]string
}

// share returns a set equal to the given one, for reading only.
func (l *labelSets) share(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(labels[k])
		b.WriteByte(0)
	}
	key := b.String()
	l.mu.Lock()
	defer l.mu.Unlock()
	if shared := l.recent[key]; shared != nil {
		return shared
	}
	shared := l.before[key]
	if shared == nil {
		shared = make(map[string]string, len(labels))
		for k, v := range labels {
			shared[share(k)] = share(v)
		}
	}
	if l.recent == nil || len(l.recent) >= maxShared {
		l.recent, l.before = map[string]map[string]string{}, l.recent
	}
	l.recent[key] = shared
	return shared
}

// share returns an equal string that all who asked for it have in common.
func share(s string) string { return unique.Make(s).Value() }
