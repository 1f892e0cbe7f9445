package kube

import (
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestOwnerOfAPod(t *testing.T) {
	tests := map[string]struct {
		kind, name, hash string
		want             string
	}{
		"of a Deployment":                   {"ReplicaSet", "cart-7f9c6d", "7f9c6d", "cart"},
		"of a ReplicaSet without a hash":    {"ReplicaSet", "cart-7f9c6d", "", "cart-7f9c6d"},
		"of a ReplicaSet with another hash": {"ReplicaSet", "cart-7f9c6d", "1111", "cart-7f9c6d"},
		"of a StatefulSet":                  {"StatefulSet", "db", "", "db"},
		"of a DaemonSet":                    {"DaemonSet", "log", "7f9c6d", "log"},
		"of a CronJob":                      {"Job", "backup-28391040", "", "backup"},
		"of a Job":                          {"Job", "import-2024", "", "import-2024"},
		"of a Job with digits alone":        {"Job", "28391040", "", "28391040"},
		"of a Job with too many digits":     {"Job", "x-28391040123", "", "x-28391040123"},
		"of nothing":                        {},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			controls := true
			k := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: "p", Labels: map[string]string{templateHash: tt.hash}}}
			if tt.kind != "" {
				k.OwnerReferences = []meta.OwnerReference{{Kind: "Other", Name: "other"}, {Kind: tt.kind, Name: tt.name, Controller: &controls}}
			}
			if got := ownerOf(k); got != tt.want {
				t.Errorf("owner %q, want %q", got, tt.want)
			}
		})
	}
}
