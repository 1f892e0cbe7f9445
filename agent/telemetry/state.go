package telemetry

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/policy"
)

// stateTimeout is how long the agent's loop may take to answer. A loop that stands still costs a scrape no more.
const stateTimeout = time.Second

// State is what the agent's loop knows at one moment.
type State struct {
	Workloads   []Workload
	Namespaces  map[string]policy.Mode // of the workloads: the mode where no policy of a workload or port says otherwise
	NotEnrolled int                    // pods that are to be enrolled and could not be
	Sessions    int                    // tunnels
	Rejected    map[string]int         // objects that cannot be used, by kind
}

// Workload is an enrolled pod.
type Workload struct {
	Cookie         uint64
	Namespace, Pod string
	Modes          policy.Modes
}

// everyPort is the label of all ports that no policy names.
const everyPort = "default"

func collectState(out chan<- prometheus.Metric, s *State) {
	for _, w := range s.Workloads {
		out <- workloadMode.with(1, w.Namespace, w.Pod, everyPort, w.Modes.ForPort(0).String())
		for port := range w.Modes.Ports {
			out <- workloadMode.with(1, w.Namespace, w.Pod, strconv.Itoa(int(port)), w.Modes.ForPort(port).String())
		}
	}
	for namespace, mode := range s.Namespaces {
		out <- namespaceMode.with(1, namespace, mode.String())
	}
	for _, kind := range []string{"PeerAuthentication", "DestinationRule"} {
		out <- rejected.with(float64(s.Rejected[kind]), kind)
	}
	out <- workloads.with(float64(len(s.Workloads)))
	out <- notEnrolled.with(float64(s.NotEnrolled))
	out <- sessions.with(float64(s.Sessions))
}

// collectPlaintext tells of the workloads that are there: the kernel may remember others for a while.
func collectPlaintext(out chan<- prometheus.Metric, s *State, peers map[endpoint]int) {
	byCookie := make(map[uint64]*Workload, len(s.Workloads))
	for i := range s.Workloads {
		byCookie[s.Workloads[i].Cookie] = &s.Workloads[i]
	}
	for at, n := range peers {
		if w := byCookie[at.cookie]; w != nil {
			out <- plaintextPeers.with(float64(n), w.Namespace, w.Pod, strconv.Itoa(int(at.port)), w.Modes.ForPort(at.port).String())
		}
	}
}

func collectSVIDs(out chan<- prometheus.Metric, all []identity.Status) {
	missing := 0
	for _, s := range all {
		switch {
		case len(s.Chain) > 0:
			out <- svidExpiry.with(float64(s.Expires.Unix()), s.ID.String())
			out <- svidObtained.with(float64(s.Obtained.Unix()), s.ID.String())
		case len(s.Workloads) > 0:
			missing++
		}
	}
	out <- svidsMissing.with(float64(missing))
}
