package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Where the nodes keep their part of the pods' network.
const (
	cniConfig  = "/etc/cni/net.d/10-ptp.conflist"
	routesFile = "/etc/e2e-routes"
)

// IP families of a cluster.
const (
	IPv4 = "ipv4"
	Dual = "dual"
)

// kindConfig returns kind's configuration of the cluster.
func kindConfig(family string, isolated bool) (string, error) {
	pods, services := "10.244.0.0/16", "10.96.0.0/16"
	switch family {
	case IPv4:
	case Dual:
		pods, services = pods+",fd00:10:244::/56", services+",fd00:10:96::/112"
	default:
		return "", fmt.Errorf("cluster: IP family %q: only %s and %s can be made", family, IPv4, Dual)
	}
	var own string
	if isolated {
		// Nobody else uses ports in there, and a fixed one survives a restart of the node.
		own = "\n  apiServerPort: 6443\n  disableDefaultCNI: true"
	}
	return fmt.Sprintf(`kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: %s
networking:
  ipFamily: %s
  podSubnet: %s
  serviceSubnet: %s%s
nodes:
- role: control-plane
- role: worker
`, Name, family, pods, services, own), nil
}

// conflist returns the CNI configuration of a node: a veth pair for each pod, addresses from the node's own ranges.
func conflist(prefixes []netip.Prefix) ([]byte, error) {
	type object = map[string]any
	var ranges, routes []any
	for _, p := range prefixes {
		ranges = append(ranges, []object{{"subnet": p.String()}})
		everything := "0.0.0.0/0"
		if p.Addr().Is6() {
			everything = "::/0"
		}
		routes = append(routes, object{"dst": everything})
	}
	return json.MarshalIndent(object{
		"cniVersion": "0.4.0",
		"name":       "pods",
		"plugins": []object{
			{
				"type":   "ptp",
				"ipMasq": false,
				"mtu":    1500,
				"ipam": object{
					"type":    "host-local",
					"dataDir": "/run/cni-ipam-state",
					"ranges":  ranges,
					"routes":  routes,
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "\t")
}

// routes returns the file of routes for one node: the prefixes of every other.
func routes(own string, prefixes map[string][]netip.Prefix) string {
	var lines strings.Builder
	for _, name := range nodeNames() {
		if name == own {
			continue
		}
		lines.WriteString(name)
		for _, p := range prefixes[name] {
			lines.WriteString(" " + p.String())
		}
		lines.WriteString("\n")
	}
	return lines.String()
}

// nodeNames returns the names of the nodes' containers.
func nodeNames() []string { return []string{ControlPlane, Worker} }

// connectPods gives pods on both nodes addresses and a way to each other.
func (c *Cluster) connectPods(ctx context.Context) error {
	prefixes := map[string][]netip.Prefix{}
	for _, name := range nodeNames() {
		p, err := c.podPrefixes(ctx, name)
		if err != nil {
			return err
		}
		prefixes[name] = p
	}
	for _, name := range nodeNames() {
		config, err := conflist(prefixes[name])
		if err != nil {
			return fmt.Errorf("cluster: CNI configuration of %s: %w", name, err)
		}
		if err := c.writeOnNode(ctx, name, routesFile, routes(name, prefixes)); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
		if _, err := c.exec(ctx, name, command{}, "systemctl", "restart", "e2e-routes.service"); err != nil {
			return fmt.Errorf("cluster: routes of %s: %w", name, err)
		}
		// Last: from then on the kubelet starts pods.
		if err := c.writeOnNode(ctx, name, cniConfig, string(config)); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	return nil
}

// podPrefixes waits until the node has been given ranges of pod addresses.
func (c *Cluster) podPrefixes(ctx context.Context, name string) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var prefixes []netip.Prefix
	err := poll(ctx, time.Second/2, func(ctx context.Context) error {
		out, err := c.kubectl(ctx, nil, "get", "node", name, "--output=jsonpath={.spec.podCIDRs[*]}")
		if err != nil {
			return err
		}
		prefixes = nil
		for word := range strings.FieldsSeq(out) {
			p, err := netip.ParsePrefix(word)
			if err != nil {
				return err
			}
			prefixes = append(prefixes, p)
		}
		if len(prefixes) == 0 {
			return fmt.Errorf("node %s has no podCIDRs yet", name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: pod addresses of %s: %w", name, err)
	}
	return prefixes, nil
}
