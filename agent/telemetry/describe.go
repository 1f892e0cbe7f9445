package telemetry

import "github.com/prometheus/client_golang/prometheus"

// description is a metric that is made anew at each scrape.
type description struct {
	*prometheus.Desc
	kind prometheus.ValueType
}

// with makes a sample.
func (d description) with(value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d.Desc, d.kind, value, labels...)
}

func gauge(name, help string, labels ...string) description {
	return description{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) description {
	return description{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

var (
	kernelEvents = counter("culvert_kernel_events_total",
		"What the BPF programs of this node have counted since their maps were made.", "event")
	connections = counter("culvert_connections_total",
		"Connections of the node's enrolled pods by the mode of the port and what became of them, as the kernel saw it.",
		"mode", "outcome")
	mapEntries    = gauge("culvert_map_entries", "Entries in a BPF map.", "map")
	mapMaxEntries = gauge("culvert_map_max_entries", "Entries for which a BPF map has room.", "map")

	workloadMode = gauge("culvert_workload_mode",
		"1 for the mutual TLS mode that the kernel enforces on a pod's port; port default is all that are not named.",
		"namespace", "pod", "port", "mode")
	namespaceMode = gauge("culvert_namespace_mode",
		"1 for the mode that mesh and namespace ask for where no policy of a workload or port says otherwise.", "namespace", "mode")
	plaintextPeers = gauge("culvert_plaintext_peers",
		"Addresses that opened plaintext connections to a pod's port within five minutes, by the mode of the port now.",
		"namespace", "pod", "port", "mode")
	workloads   = gauge("culvert_workloads", "Pods of this node that are enrolled.")
	notEnrolled = gauge("culvert_workloads_not_enrolled", "Pods of this node that are to be enrolled and could not be.")
	sessions    = gauge("culvert_tunnel_sessions", "Tunnels that are connected to the agent: two while one takes over from the other.")
	rejected    = gauge("culvert_rejected_policies",
		"Objects that cannot be used; what was in force before stays.", "kind")

	svidExpiry = gauge("culvert_svid_expiry_timestamp_seconds",
		"When the SVID of an identity expires, as a Unix time.", "identity")
	svidObtained = gauge("culvert_svid_obtained_timestamp_seconds",
		"When the SVID of an identity was obtained, as a Unix time.", "identity")
	svidsMissing = gauge("culvert_svids_missing", "Identities in use that have no SVID: the connections of their pods are refused.")
)

func descriptions() []description {
	return []description{kernelEvents, connections, mapEntries, mapMaxEntries, workloadMode, namespaceMode, plaintextPeers,
		workloads, notEnrolled, sessions, rejected, svidExpiry, svidObtained, svidsMissing}
}
