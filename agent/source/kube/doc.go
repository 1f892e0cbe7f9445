// Package kube is the source that learns the cluster from the Kubernetes API server.
//
// Each resource is followed by LIST and WATCH (a streaming list where the server has one). Objects are cut down to
// what the agent needs as they come off the wire, one by one, and wait in an inbox per resource, where a later
// version replaces an earlier one. One goroutine owns the source.Index: it empties the inboxes, and publishes a
// Snapshot at most every 20 ms, the first when every resource has been read. A list is taken as a whole or not
// at all; an error never removes anything. Policies, rules and namespaces are never read from a cache of unknown age;
// policies that could not be read for a minute loosen nothing, until they are read again.
//
// # The end
//
// The agent leaves the node as it is when it ends, unless Culvert is being uninstalled: its namespace is terminating,
// or the DaemonSet that controls the agent's own pod is gone, is not made anew within some seconds, and has not set its
// pods free. What cannot be told from an uninstall is a DaemonSet deleted in the foreground to be made anew: that waits
// for all pods to be gone first. Then the nodes are without the mesh until the new pods are there.
//
// # What Services lead to
//
// Endpoints are chosen as kube-proxy does: those that are ready, or, when none is, those that still serve while they
// terminate; with internalTrafficPolicy Local those of this node; with hints (trafficDistribution) those for this
// node or zone if every endpoint has hints and one fits. externalIPs and load balancer addresses lead to the same
// endpoints. Not done: session affinity (connections are spread), node ports (connections there stay with
// kube-proxy, so they arrive in plaintext), load balancers with loadBalancerSourceRanges or ipMode Proxy and external
// addresses of a Service with internalTrafficPolicy Local (also left to kube-proxy).
//
// # What the watch of all pods costs
//
// On paper, from what e2e/bench/scale measures: a Pod with the usual fields is 5 KB as protobuf on the wire
// (managedFields are a third of it); no selector can make it smaller. With 1,000 nodes of 50 pods:
//
//   - Start of one agent: 50,000 x 5 KB = 250 MB. All agents at once would be 250 GB, 200 s of a 10 Gbit/s link, so
//     the DaemonSet's rollout is bounded (maxUnavailable 10%: 25 GB, 20 s a step). After a broken connection the
//     watch goes on where it was, which costs nothing; after a restart of the API server, which has no history then,
//     everything is read anew.
//   - 200 changes/s, 140 of them of pods: 140 x 5 KB x 1,000 watchers = 700 MB/s (5.6 Gbit/s) leave the API servers,
//     140,000 events/s. A change is encoded once for all watchers; sending it took 13 us of the API server's CPU for
//     each watcher, so 1.9 cores. 20 changes/s, a calm cluster, take a tenth of it.
//   - Nodes: a status every 5 minutes, 1,000 / 300 s x 10 KB x 1,000 watchers = 33 MB/s.
//   - The agent: 140 x 5 KB = 0.7 MB/s to receive and decode. It keeps about 700 bytes a pod (TestMemoryOfPods).
//
// Up to 1,000 nodes that is what a control plane of that size carries (kube-proxy's EndpointSlices cost about the
// same). Beyond, the watch of pods is what has to go.
//
// # The plan beyond
//
// Each agent publishes what others need of its own pods (name, identity, addresses, labels that some selector names,
// redirection: about 100 bytes a pod) in summary objects of its node, cut into slices of at most 16 pods so that a
// change rewrites 1.6 KB and not all of the node. Agents watch those, and only their own node's Pods (field selector
// spec.nodeName). A start then costs 50,000 x 100 B = 5 MB; of 200 changes/s about a third concern anything in a
// summary: 70 x 1.6 KB x 1,000 = 112 MB/s, a sixth of what it was. The seam is here: a feed delivers records into
// an inbox, and nothing behind the inbox knows that a *source.Pod came from a Pod. A summary feed fills the pods'
// inbox with the remote ones, beside a feed for the node's own.
package kube
