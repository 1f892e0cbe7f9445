package main

import "fmt"

// quantiles are those of a histogram, by one label if it is not empty.
func quantiles(histogram, selector, by string) []query {
	legend := ""
	grouping := "le"
	if by != "" {
		legend, grouping = " {{"+by+"}}", "le, "+by
	}
	var all []query
	for _, q := range []string{"0.5", "0.99"} {
		all = append(all, query{
			fmt.Sprintf("histogram_quantile(%s, sum by (%s) (rate(%s_bucket%s[$__rate_interval])))", q, grouping, histogram, selector),
			"p" + map[string]string{"0.5": "50", "0.99": "99"}[q] + legend,
		})
	}
	return all
}

func one(expr, legend string) []query { return []query{{expr, legend}} }

func node() board {
	const on = `{node=~"$node"}`
	process := func(metric string) string {
		return "sum by (node, process) (" + metric + " * on (job, instance) group_left (node, process) culvert_build_info" + on + ")"
	}
	return board{
		title:       "Culvert / Node",
		description: "What agents, tunnels and the kernel do on each node.",
		variables:   []variable{{"node", "node", "culvert_build_info"}},
		rows: []row{
			{"State", []panel{
				{kind: stat, title: "Enrolled pods", unit: count, width: 6, queries: one(`sum(culvert_workloads`+on+`)`, "")},
				{kind: stat, title: "Pods that could not be enrolled", help: "The agent's log and Events of the pods say why.", unit: count, width: 6, bad: 1,
					queries: one(`sum(culvert_workloads_not_enrolled`+on+`)`, "")},
				{kind: stat, title: "Nodes whose agent has no tunnel", unit: count, width: 6, bad: 1,
					queries: one(`count(culvert_tunnel_sessions`+on+` == 0) or vector(0)`, "")},
				{kind: stat, title: "Policies that cannot be used", help: "What was in force before stays.", unit: count, width: 6, bad: 1,
					queries: one(`sum(max by (kind) (culvert_rejected_policies`+on+`))`, "")},
			}},
			{"Connections", []panel{
				{kind: graph, title: "Connections by mode and outcome", help: "Seen by the kernel, by the mode of the port. same_node: both identities were checked, nothing left the node. " +
					"pass_through: from an enrolled pod to what the mesh does not know. What there is none of is not shown.",
					unit: perSecond, width: 12, queries: one(`sum by (mode, outcome) (rate(culvert_connections_total`+on+`[$__rate_interval])) > 0`, "{{mode}} {{outcome}}")},
				{kind: graph, title: "What the tunnel carried", unit: perSecond, width: 12,
					queries: one(`sum by (direction, carried, outcome) (rate(culvert_tunnel_connections_total`+on+`[$__rate_interval]))`, "{{direction}} {{carried}} {{outcome}}")},
				{kind: graph, title: "TLS handshake", unit: seconds, width: 12, queries: quantiles("culvert_tunnel_handshake_seconds", on, "direction")},
				{kind: graph, title: "TLS handshakes that failed", unit: perSecond, width: 12,
					queries: one(`sum by (direction, reason) (rate(culvert_tunnel_handshake_failures_total`+on+`[$__rate_interval]))`, "{{direction}} {{reason}}")},
			}},
			{"Tunnel", []panel{
				{kind: graph, title: "Connections to other nodes and streams on them", unit: count, width: 8, queries: []query{
					{`sum by (node) (culvert_tunnel_pool_connections` + on + `)`, "connections {{node}}"},
					{`sum by (node) (culvert_tunnel_pool_streams` + on + `)`, "streams {{node}}"},
				}},
				{kind: graph, title: "Held for applications that do not read", unit: bytesOf, width: 8,
					queries: one(`sum by (node) (culvert_tunnel_buffered_bytes`+on+`)`, "{{node}}")},
				{kind: graph, title: "Waits for a peer's window", unit: perSecond, width: 8,
					queries: one(`sum by (node) (rate(culvert_tunnel_window_stalls_total`+on+`[$__rate_interval]))`, "{{node}}")},
				{kind: graph, title: "Sockets in reserve", unit: count, width: 8,
					queries: one(`sum by (node) (culvert_tunnel_reserve_sockets`+on+`)`, "{{node}}")},
				{kind: graph, title: "Flows not reported to the agent", unit: perSecond, width: 8,
					queries: one(`sum by (node) (rate(culvert_tunnel_flows_lost_total`+on+`[$__rate_interval]))`, "{{node}}")},
				{kind: graph, title: "Connections whose destination is unknown", help: "Reset because the kernel did not know where they wanted to go.", unit: perSecond, width: 8,
					queries: one(`sum by (node) (rate(culvert_tunnel_destination_missing_total`+on+`[$__rate_interval]))`, "{{node}}")},
				{kind: graph, title: "Agent and tunnel are connected", help: "Seen from either side.", unit: count, width: 8, queries: []query{
					{`sum by (node) (culvert_tunnel_sessions` + on + `)`, "agent {{node}}"},
					{`sum by (node) (culvert_tunnel_agent_connected` + on + `)`, "tunnel {{node}}"},
				}},
			}},
			{"Policy and kernel", []panel{
				{kind: graph, title: "From a changed policy to the kernel", unit: seconds, width: 12, queries: quantiles("culvert_policy_propagation_seconds", on, "")},
				{kind: graph, title: "Enrolment of a pod", unit: seconds, width: 12, queries: quantiles("culvert_enrolment_seconds", on, "")},
				{kind: graph, title: "Fill of the BPF maps", help: "plaintext and redirects drop their oldest entries when they are full.", unit: share, width: 8,
					queries: one(`max by (map) (culvert_map_entries`+on+` / culvert_map_max_entries`+on+`)`, "{{map}}")},
				{kind: graph, title: "Events in the kernel", unit: perSecond, width: 8,
					queries: one(`sum by (event) (rate(culvert_kernel_events_total`+on+`[$__rate_interval]))`, "{{event}}")},
				{kind: graph, title: "Refusals without details", unit: perSecond, width: 8,
					queries: one(`sum by (node) (rate(culvert_refusals_unreported_total`+on+`[$__rate_interval]))`, "{{node}}")},
			}},
			{"Processes", []panel{
				{kind: graph, title: "Processor", help: "100 % is one core.", unit: share, width: 8,
					queries: one(process(`rate(process_cpu_seconds_total[$__rate_interval])`), "{{process}} {{node}}")},
				{kind: graph, title: "Memory", unit: bytesOf, width: 8, queries: one(process(`process_resident_memory_bytes`), "{{process}} {{node}}")},
				{kind: table, title: "Versions", unit: count, width: 8,
					queries: one(`count by (process, version, revision, goversion) (culvert_build_info`+on+`)`, "")},
			}},
		},
	}
}

func workload() board {
	const (
		in   = `{namespace=~"$namespace"}`
		to   = `{reporter="destination", destination_workload_namespace=~"$namespace"}`
		from = `{reporter="source", source_workload_namespace=~"$namespace"}`
	)
	rate := func(metric, selector string) string { return "rate(" + metric + selector + "[$__rate_interval])" }
	return board{
		title:       "Culvert / Workload",
		description: "Which mode holds for which port, who talks to whom, and how. A workload is what made the pods, a Deployment for one.",
		variables:   []variable{{"namespace", "namespace", "culvert_workload_mode"}},
		rows: []row{
			{"Mode", []panel{
				{kind: stat, title: "Enrolled pods", unit: count, width: 6, queries: one(`count(count by (namespace, pod) (culvert_workload_mode`+in+`))`, "")},
				{kind: stat, title: "Of them STRICT on every port", unit: count, width: 6,
					queries: one(`count(count by (namespace, pod) (culvert_workload_mode`+in+`) unless count by (namespace, pod) (culvert_workload_mode{namespace=~"$namespace", mode!="STRICT"})) or vector(0)`, "")},
				{kind: stat, title: "Plaintext peers of the last five minutes", unit: count, width: 6, bad: 1,
					queries: one(`sum(culvert_plaintext_peers`+in+`) or vector(0)`, "")},
				{kind: stat, title: "Share of mutual TLS among what the tunnels carried",
					help: "Of both ends on one node the identities are checked, and what they say stays in the kernel: they do not count as mutual TLS.", unit: share, width: 6,
					queries: one(`sum(increase(istio_tcp_connections_opened_total{reporter="source", source_workload_namespace=~"$namespace", connection_security_policy="mutual_tls"}[$__range])) / sum(increase(istio_tcp_connections_opened_total`+from+`[$__range]))`, "")},
				{kind: table, title: "Mode of each port", help: "Port default is all that are not named.", unit: count, width: 12,
					queries: one(`max by (namespace, pod, port, mode) (culvert_workload_mode`+in+`)`, "")},
				{kind: table, title: "Ports that took plaintext in the last five minutes", help: "By how many addresses. Look here before STRICT is switched on.", unit: count, width: 12,
					queries: one(`max by (namespace, pod, port, mode) (culvert_plaintext_peers`+in+`)`, "")},
			}},
			{"Connections", []panel{
				{kind: graph, title: "To workloads", unit: perSecond, width: 12,
					queries: one(`sum by (destination_workload, connection_security_policy) (`+rate("istio_tcp_connections_opened_total", to)+`)`, "{{destination_workload}} {{connection_security_policy}}")},
				{kind: graph, title: "From workloads", unit: perSecond, width: 12,
					queries: one(`sum by (source_workload, connection_security_policy) (`+rate("istio_tcp_connections_opened_total", from)+`)`, "{{source_workload}} {{connection_security_policy}}")},
				{kind: graph, title: "That failed", help: "DENY: refused by policy; CONNECT: could not be made; NR: no route; UH: no endpoint.", unit: perSecond, width: 12,
					queries: one(`sum by (source_workload, destination_workload, response_flags) (`+rate("istio_tcp_connections_failed_total", from)+`)`, "{{source_workload}} to {{destination_workload}} {{response_flags}}")},
				{kind: graph, title: "Open", unit: count, width: 12,
					queries: one(`sum by (source_workload) (istio_tcp_connections_opened_total`+from+` - istio_tcp_connections_closed_total`+from+`)`, "{{source_workload}}")},
				{kind: graph, title: "Received by workloads", unit: bytesPerSec, width: 12,
					queries: one(`sum by (destination_workload) (`+rate("istio_tcp_received_bytes_total", to)+`)`, "{{destination_workload}}")},
				{kind: graph, title: "Sent by workloads", unit: bytesPerSec, width: 12,
					queries: one(`sum by (destination_workload) (`+rate("istio_tcp_sent_bytes_total", to)+`)`, "{{destination_workload}}")},
				{kind: table, title: "Who talks to whom", help: "Connections within the time that is shown.", unit: count, width: 24,
					queries: one(`sum by (source_workload_namespace, source_workload, destination_workload_namespace, destination_workload, connection_security_policy) (increase(istio_tcp_connections_opened_total`+from+`[$__range])) > 0`, "")},
			}},
		},
	}
}

func certificates() board {
	const on = `{node=~"$node"}`
	left := func(metric string) string { return "min(" + metric + " > 0) - time()" }
	return board{
		title:       "Culvert / Certificates",
		description: "SVIDs of the pods, how they are renewed, and the authority that signs them.",
		variables:   []variable{{"node", "node", "culvert_build_info"}},
		rows: []row{
			{"State", []panel{
				{kind: stat, title: "Least life left of an SVID", unit: seconds, width: 6, queries: one(`min(culvert_svid_expiry_timestamp_seconds`+on+`) - time()`, "")},
				{kind: stat, title: "Identities without SVID", help: "The connections of their pods are refused.", unit: count, width: 6, bad: 1,
					queries: one(`sum(culvert_svids_missing`+on+`)`, "")},
				{kind: stat, title: "Life left of the intermediate", unit: seconds, width: 6, bad: 5 * 86400, below: true,
					queries: one(left("culvert_ca_intermediate_expiry_timestamp_seconds"), "")},
				{kind: stat, title: "Life left of the root", unit: seconds, width: 6, bad: 30 * 86400, below: true,
					queries: one(left("culvert_ca_root_expiry_timestamp_seconds"), "")},
			}},
			{"SVIDs", []panel{
				{kind: table, title: "Life left by identity", unit: seconds, width: 12,
					queries: one(`sort(min by (identity, node) (culvert_svid_expiry_timestamp_seconds`+on+`) - time())`, "")},
				{kind: graph, title: "Renewals", unit: perSecond, width: 12, queries: one(`sum by (node) (rate(culvert_svid_renewals_total`+on+`[$__rate_interval]))`, "{{node}}")},
				{kind: graph, title: "Time to get an SVID", unit: seconds, width: 12, queries: quantiles("culvert_svid_request_seconds", on, "")},
				{kind: graph, title: "Attempts that failed", unit: perSecond, width: 12,
					queries: one(`sum by (node, reason) (rate(culvert_svid_failures_total`+on+`[$__rate_interval]))`, "{{node}} {{reason}}")},
				{kind: graph, title: "SVIDs that tunnels hold", unit: count, width: 12, queries: []query{
					{`sum by (node) (culvert_tunnel_svids` + on + `)`, "{{node}}"},
					{`sum by (node) (culvert_tunnel_svids_expired` + on + `)`, "expired {{node}}"},
				}},
				{kind: graph, title: "Connections refused because the own SVID had expired", unit: perSecond, width: 12,
					queries: one(`sum by (node) (rate(culvert_tunnel_refused_expired_total`+on+`[$__rate_interval]))`, "{{node}}")},
			}},
			{"Authority", []panel{
				{kind: graph, title: "Certificates issued", unit: perSecond, width: 8, queries: one(`sum(rate(culvert_ca_certificates_issued_total[$__rate_interval]))`, "issued")},
				{kind: graph, title: "Requests refused", unit: perSecond, width: 8,
					queries: one(`sum by (reason) (rate(culvert_ca_requests_refused_total[$__rate_interval]))`, "{{reason}}")},
				{kind: graph, title: "Time to answer a request", unit: seconds, width: 8, queries: quantiles("culvert_ca_request_seconds", "", "")},
				{kind: graph, title: "Rotation of the root", help: "announce: a new root is made known; retire: the old one is still trusted.", unit: count, width: 8,
					queries: one(`max by (phase) (culvert_ca_rotation_phase)`, "{{phase}}")},
				{kind: graph, title: "Rotation that failed", unit: perSecond, width: 8,
					queries: one(`sum(rate(culvert_ca_rotation_failures_total[$__rate_interval]))`, "looks that ended with an error")},
				{kind: graph, title: "Namespaces with the roots", unit: count, width: 8,
					queries: one(`max by (state) (culvert_ca_bundle_namespaces)`, "{{state}}")},
				{kind: graph, title: "Agents that follow the roots, and roots", unit: count, width: 12, queries: []query{
					{`sum(culvert_ca_bundle_streams)`, "streams"}, {`max(culvert_ca_bundle_roots)`, "roots"},
				}},
				{kind: graph, title: "Time of the API server to review a token", unit: seconds, width: 12, queries: quantiles("culvert_ca_token_review_seconds", "", "")},
			}},
		},
	}
}
