package policy_test

import (
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/policy"
)

func ExampleSet_Effective() {
	set := policy.NewSet("istio-system", []policy.PeerAuthentication{
		{Namespace: "default", Name: "default-strict", Created: time.Unix(1, 0), Mode: policy.Strict},
		{
			Namespace: "default", Name: "productpage", Created: time.Unix(2, 0), Selector: map[string]string{"app": "productpage"},
			Ports: map[uint16]policy.Mode{9080: policy.Permissive},
		},
	})
	d := set.Effective(policy.Workload{Namespace: "default", Name: "productpage-v1", Labels: map[string]string{"app": "productpage"}})
	for _, port := range []uint16{9080, 9090} {
		p := d.ForPort(port)
		fmt.Println(port, p.Mode, "by", p.Policy)
	}
	// Output:
	// 9080 PERMISSIVE by default/productpage
	// 9090 STRICT by default/default-strict
}

func ExampleRuleSet_Lookup() {
	rules := policy.NewRuleSet("istio-system", "cluster.local", []policy.DestinationRule{
		{Namespace: "default", Name: "payment", Host: "payment", TLS: &policy.ClientTLS{Mode: policy.TLSIstioMutual}},
	})
	d := rules.Lookup(policy.Workload{Namespace: "web", Name: "frontend"}, policy.Ref{Namespace: "default", Name: "payment"}, 8080)
	fmt.Println(d.Client, "by", d.Rule)
	// Output: mutual by default/payment
}
