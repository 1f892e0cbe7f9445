package telemetry

import (
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// BuildInfo says what program a process (agent, tunnel, ca) runs.
func BuildInfo(process, version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "culvert_build_info", Help: "1, with what the process was built from.",
		ConstLabels: prometheus.Labels{
			"process": process, "version": version, "revision": revision(), "goversion": runtime.Version(),
		},
	}, func() float64 { return 1 })
}

// revision is the commit that the program was built from, if the build was told.
func revision() string {
	info, _ := debug.ReadBuildInfo()
	if info != nil {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}
