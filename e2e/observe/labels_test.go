package observe

import "testing"

// istioLabels are those of ztunnel's TCP metrics. Kiali skips a series that lacks one of them.
func istioLabels() []string {
	all := []string{"reporter", "request_protocol", "response_flags", "connection_security_policy",
		"destination_service", "destination_service_namespace", "destination_service_name"}
	for _, end := range []string{"source_", "destination_"} {
		for _, one := range []string{"workload", "canonical_service", "canonical_revision", "workload_namespace", "principal", "app", "version", "cluster"} {
			all = append(all, end+one)
		}
	}
	return all
}

// checkIstioLabels asks as Istio's dashboards and Kiali do. The demo's pods were made by nothing, and have the label app.
func checkIstioLabels(t *testing.T, p *realPrometheus) {
	for _, metric := range []string{"opened_total", "closed_total", "failed_total"} {
		found, err := p.query("istio_tcp_connections_" + metric)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d series, %v", metric, len(found), err)
		}
		for _, s := range found {
			for _, name := range istioLabels() {
				if s.labels[name] == "" {
					t.Errorf("%s: %v lacks %s", metric, s.labels, name)
				}
			}
		}
	}
	const (
		from = `source_workload="nginx", source_canonical_service="nginx", source_app="nginx", source_workload_namespace="test", ` +
			`source_cluster="Kubernetes", source_principal="spiffe://cluster.local/ns/test/sa/nginx", `
		to = `destination_workload="productpage", destination_canonical_service="productpage", destination_app="productpage", ` +
			`destination_canonical_revision="latest", destination_version="latest", destination_workload_namespace="default", ` +
			`destination_cluster="Kubernetes", destination_principal="spiffe://cluster.local/ns/default/sa/productpage", `
		service = `destination_service="productpage.default.svc.cluster.local", destination_service_namespace="default", destination_service_name="productpage", `
		rest    = `request_protocol="tcp", response_flags="-", connection_security_policy="mutual_tls"`
	)
	for _, want := range []string{
		`reporter="source", source_canonical_revision="latest", source_version="latest", ` + from + to + service + rest,
		`reporter="destination", source_canonical_revision="unknown", source_version="unknown", ` + from + to + `destination_service="unknown", ` + rest,
	} {
		for _, metric := range []string{"connections_opened_total", "connections_closed_total", "received_bytes_total", "sent_bytes_total"} {
			if found, err := p.query("istio_tcp_" + metric + "{" + want + "} > 0"); err != nil || len(found) != 1 {
				t.Errorf("%s{%s}: %d series, %v", metric, want, len(found), err)
			}
		}
	}
}
