package spiffe

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"

	"github.com/culvert-mesh/culvert/agent/identity"
)

func TestReference(t *testing.T) {
	for _, test := range []struct {
		name           string
		w              identity.Workload
		uid, ns, named string // all empty: refused
	}{
		{"UID and name", identity.Workload{UID: "u", Namespace: "shop", Pod: "cart-0"}, "u", "", ""},
		{"name", identity.Workload{Namespace: "shop", Pod: "cart-0"}, "", "shop", "cart-0"},
		{"name without namespace", identity.Workload{Pod: "cart-0"}, "", "", ""},
		{"neither", identity.Workload{Namespace: "shop", ServiceAccount: "cart"}, "", "", ""},
	} {
		got, err := reference(test.w)
		if refused := test.uid+test.named == ""; refused != (err != nil) {
			t.Errorf("%s: error %v", test.name, err)
			continue
		}
		if got.GetUid() != test.uid || got.GetKey().GetNamespace() != test.ns || got.GetKey().GetName() != test.named {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestFederatedNames(t *testing.T) {
	for name, ok := range map[string]bool{"elsewhere.example": true, "spiffe://elsewhere.example": true, "spiffe://": false, "Else where": false} {
		key := []byte("key")
		a, err := brokered(&broker.SubscribeToX509SVIDResponse{
			Svids:            []*broker.X509SVID{{SpiffeId: "spiffe://cluster.local/x", X509SvidKey: key}},
			FederatedBundles: map[string][]byte{name: []byte("roots")}})
		switch {
		case ok != (err == nil):
			t.Errorf("%q: error %v", name, err)
		case ok && (len(a.federatesWith) != 1 || a.federatesWith[0] != foreign() || string(a.federated[foreign()]) != "roots"):
			t.Errorf("%q: %v, %v", name, a.federatesWith, a.federated)
		case !ok && string(key) == "key":
			t.Errorf("%q: the key of a refused answer is still there", name)
		}
	}
}
