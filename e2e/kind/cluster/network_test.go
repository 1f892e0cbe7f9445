package cluster

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func TestKindConfig(t *testing.T) {
	type networking struct {
		IPFamily          string `yaml:"ipFamily"`
		PodSubnet         string `yaml:"podSubnet"`
		ServiceSubnet     string `yaml:"serviceSubnet"`
		APIServerPort     int    `yaml:"apiServerPort"`
		DisableDefaultCNI bool   `yaml:"disableDefaultCNI"`
	}
	tests := map[string]struct {
		family   string
		isolated bool
		want     networking
	}{
		"ours": {Dual, true, networking{
			"dual", "10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/16,fd00:10:96::/112", 6443, true,
		}},
		"ours, IPv4":        {IPv4, true, networking{"ipv4", "10.244.0.0/16", "10.96.0.0/16", 6443, true}},
		"kind's node image": {IPv4, false, networking{"ipv4", "10.244.0.0/16", "10.96.0.0/16", 0, false}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			text, err := kindConfig(test.family, test.isolated)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Name       string
				Networking networking
				Nodes      []struct{ Role string }
			}
			if err := yaml.Unmarshal([]byte(text), &got); err != nil {
				t.Fatalf("%v in:\n%s", err, text)
			}
			if got.Name != Name || len(got.Nodes) != 2 {
				t.Errorf("cluster %q with %d nodes", got.Name, len(got.Nodes))
			}
			if diff := cmp.Diff(test.want, got.Networking); diff != "" {
				t.Errorf("networking differs (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := kindConfig("ipv7", true); err == nil {
		t.Error("no error for an IP family that there is not")
	}
}

func prefixes(words ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, w := range words {
		list = append(list, netip.MustParsePrefix(w))
	}
	return list
}

func TestConflist(t *testing.T) {
	content, err := conflist(prefixes("10.244.1.0/24", "fd00:10:244:1::/64"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		CNIVersion, Name string
		Plugins          []struct {
			Type string
			IPAM struct {
				Ranges [][]struct{ Subnet string }
				Routes []struct{ Dst string }
			}
		}
	}
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	if got.CNIVersion == "" || got.Name == "" || len(got.Plugins) != 2 || got.Plugins[0].Type != "ptp" {
		t.Fatalf("not a list of ptp and another: %s", content)
	}
	ipam, err := json.Marshal(got.Plugins[0].IPAM)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"Ranges":[[{"Subnet":"10.244.1.0/24"}],[{"Subnet":"fd00:10:244:1::/64"}]],` +
		`"Routes":[{"Dst":"0.0.0.0/0"},{"Dst":"::/0"}]}`
	if diff := cmp.Diff(want, string(ipam)); diff != "" {
		t.Errorf("IPAM differs (-want +got):\n%s", diff)
	}
}

func TestRoutes(t *testing.T) {
	of := map[string][]netip.Prefix{
		ControlPlane: prefixes("10.244.0.0/24", "fd00:10:244::/64"),
		Worker:       prefixes("10.244.1.0/24"),
	}
	if got, want := routes(Worker, of), "culvert-control-plane 10.244.0.0/24 fd00:10:244::/64\n"; got != want {
		t.Errorf("routes of the worker: %q, want %q", got, want)
	}
	if got, want := routes(ControlPlane, of), "culvert-worker 10.244.1.0/24\n"; got != want {
		t.Errorf("routes of the control plane: %q, want %q", got, want)
	}
}
