package policy

import (
	"cmp"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// instant is a creation time as it is compared.
func instant(t time.Time) int64 {
	if t.IsZero() {
		return math.MaxInt64
	}
	return t.Unix()
}

// older orders by creation, then name, then namespace.
func older(aCreated, bCreated time.Time, a, b Ref) int {
	return cmp.Or(
		cmp.Compare(instant(aCreated), instant(bCreated)),
		cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.Namespace, b.Namespace),
	)
}

// olderPolicy is a total order. A cluster cannot hold two objects of one name, a folder of manifests
// can: then the stricter comes first, and the content decides last, so that input order never does.
func olderPolicy(a, b *PeerAuthentication) int {
	if c := older(a.Created, b.Created, a.Ref(), b.Ref()); c != 0 || a == b {
		return c
	}
	return cmp.Or(cmp.Compare(b.Mode, a.Mode), cmp.Compare(content(a), content(b)))
}

// olderRule is a total order, by content where two rules have the same name and age.
func olderRule(a, b *DestinationRule) int {
	if c := older(a.Created, b.Created, a.Ref(), b.Ref()); c != 0 || a == b {
		return c
	}
	return cmp.Compare(content(a), content(b))
}

// content is an object as text, map keys in order.
func content(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // a Created beyond the year 9999
		return ""
	}
	return string(b)
}

// label is one key with its value.
type label struct{ key, value string }

// matches reports whether every label of the selector is among labels.
func matches(selector, labels map[string]string) bool {
	if len(selector) > len(labels) {
		return false
	}
	for key, value := range selector {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// labelKey is the same for equal label sets and differs for different ones.
func labelKey(labels map[string]string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		for _, part := range []string{key, labels[key]} {
			b.WriteString(strconv.Itoa(len(part)))
			b.WriteByte(':')
			b.WriteString(part)
		}
	}
	return b.String()
}
