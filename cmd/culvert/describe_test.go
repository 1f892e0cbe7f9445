package main

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func examplePod() *admin.PodDescription {
	now := exampleTime()
	renewal := now.Add(11 * time.Hour)
	return &admin.PodDescription{
		Answer: admin.Answer{Version: version, Time: now},
		Node:   "worker-1", Pod: "shop/cart-1", ServiceAccount: "cart", Addresses: []string{"10.1.0.1", "fd00::1"},
		Enrolled: true, Reason: "namespace label istio.io/dataplane-mode=ambient", Identity: "spiffe://cluster.local/ns/shop/sa/cart",
		CertSource: "istiod", Certificate: &admin.SVID{NextRenewal: &renewal, Chain: []admin.Certificate{{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(23 * time.Hour)}}},
		Default: admin.PortDescription{Mode: "STRICT", Policy: "shop/all"},
		Ports: []admin.PortDescription{
			{Port: 8080, Names: []string{"http"}, Declared: true, Mode: "PERMISSIVE", Policy: "shop/cart", InForce: "STRICT"},
			{Port: 9090, Mode: "DISABLE", Policy: "shop/cart"},
		},
		Levels: []admin.PolicyLevel{
			{Level: "namespace", Winner: "shop/all", Mode: "STRICT"},
			{Level: "workload", Winner: "shop/cart", Mode: "UNSET", Losers: []string{"shop/cart-too"}, LosersCount: 21},
		},
		Ignored: []string{"istio-system/odd"},
		Services: []admin.PodService{
			{Service: "shop/cart", Ports: []admin.PodServicePort{{Port: 80, Target: 8080, Rules: []admin.CallerRule{
				{Callers: "all others", Rule: "shop/plain", Action: "plaintext"}, {Callers: "namespace old", Rule: "old/mutual", Action: "mutual"}}}}},
			{Service: "shop/metrics", Ports: []admin.PodServicePort{{Port: 9090, Target: 9090}}},
		},
		Lately: []admin.RecentPeer{
			{Peer: "shop/till-1", Port: 8080, Carried: "mtls", Connections: 12, Last: now.Add(-3 * time.Second)},
			{Peer: "192.0.2.7", Port: 9090, Carried: "plaintext", Connections: 1, Last: now.Add(-2 * time.Hour)},
		},
		Warnings: []string{"a policy that may apply to it cannot be read: nothing is loosened until it can"},
	}
}

func exampleService() *admin.ServiceDescription {
	return &admin.ServiceDescription{
		Answer: admin.Answer{Version: version}, Node: "worker-1", Service: "shop/till", Addresses: []string{"10.2.0.2"},
		Ports: []admin.ServicePortDescription{
			{Name: "web", Port: 80, Target: "http", EndpointsCount: 3, InMesh: 1, Rules: []admin.CallerRule{{Callers: "all", Rule: "shop/mutual", Action: "mutual"}},
				Endpoints: []admin.EndpointDescription{
					{Address: "10.1.1.1:8080", Pod: "shop/till-1", Node: "worker-2", InMesh: true, Mode: "STRICT", Policy: "shop/all"},
					{Address: "10.9.9.9:8080"}}},
			{Port: 81, Target: "81", Endpoints: []admin.EndpointDescription{}},
		},
		Warnings: []string{"shop/till:81 has no ready endpoint: connections are refused"},
	}
}

func TestDescribeForPeople(t *testing.T) {
	outside := &admin.PodDescription{Answer: admin.Answer{Version: version}, Node: "worker-1", Pod: "old/legacy", Reason: "neither namespace nor pod asks for it",
		Default: admin.PortDescription{Mode: "STRICT", Policy: "istio-system/mesh"}, Warnings: []string{"evil \x1b[2J"}}
	goldenFile(t, "describe-pod.txt", rendered(false, func(s *screen) { showPod(s, examplePod()) }))
	goldenFile(t, "describe-pod-outside.txt", rendered(false, func(s *screen) { showPod(s, outside) }))
	goldenFile(t, "describe-service.txt", rendered(false, func(s *screen) { showService(s, exampleService()) }))
	var b strings.Builder
	if err := writeYAML(&b, exampleService()); err != nil {
		t.Fatal(err)
	}
	goldenFile(t, "describe-service.yaml", b.String())
}

func TestDescribeInJSONAndYAMLAreTheSame(t *testing.T) {
	socket := serveNode(t, &answeringNode{pods: map[string]*admin.PodDescription{"shop/cart-1": examplePod()}}, version)
	answer := func(format string, decode func([]byte, any) error) map[string]any {
		stdout, _, err := runAnswers(t.Context(), nil, "describe", "pod", "shop/cart-1", "--admin-socket", socket, "-o", format)
		var got map[string]any
		if err := errors.Join(err, decode([]byte(stdout), &got)); err != nil {
			t.Fatal(err)
		}
		delete(got, "time")
		return got
	}
	fromJSON := answer("json", json.Unmarshal)
	text, err := json.Marshal(answer("yaml", yaml.Unmarshal)) // numbers are of one kind in JSON
	var fromYAML map[string]any
	if err := errors.Join(err, json.Unmarshal(text, &fromYAML)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(fromJSON, fromYAML) || fromJSON["pod"] != "shop/cart-1" {
		t.Errorf("JSON: %v\nYAML: %v", fromJSON, fromYAML)
	}
}
