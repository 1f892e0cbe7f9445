package server

import "testing"

// FuzzIdentity: whatever is asked for, what comes of it is the identity of one service account of this trust domain,
// and reads exactly as it was asked.
func FuzzIdentity(f *testing.F) {
	for _, text := range []string{"spiffe://cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/shop/sa/cart/", "spiffe://CLUSTER.local/ns/a/sa/b",
		"spiffe://cluster.local/ns//sa/b", "spiffe://cluster.local/ns/a/sa/%2e%2e", "spiffe://cluster.local/ns/a/sa/b?x#y", "x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w, err := wanted(domain(), agentOn("a"), text)
		if err != nil || text == "" {
			return
		}
		if w.ID != id(w.namespace, w.account) || w.String() != text {
			t.Fatalf("%q became %s of %q %q", text, w.ID, w.namespace, w.account)
		}
	})
}
