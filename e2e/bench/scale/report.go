package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// spread is how a number of times are distributed.
type spread struct {
	Count  int           `json:"count"`
	Median time.Duration `json:"median"`
	P90    time.Duration `json:"p90"`
	P99    time.Duration `json:"p99"`
	Max    time.Duration `json:"max"`
}

// newSpread takes sorted times.
func newSpread(sorted []time.Duration) spread {
	return spread{len(sorted), percentile(sorted, 50), percentile(sorted, 90), percentile(sorted, 99), percentile(sorted, 100)}
}

// report is what a run found out. Times are nanoseconds in JSON, memory bytes.
type report struct {
	Cluster string `json:"cluster"`

	FirstSync  time.Duration `json:"firstSync"`  // from the start to the first snapshot, nothing enrolled
	SyncCPU    time.Duration `json:"syncCPU"`    // the agent's, until then
	SyncMemory memory        `json:"syncMemory"` // right then
	Add        spread        `json:"add"`        // answers to the CNI plugin
	RestMemory memory        `json:"restMemory"` // without changes

	Rate         float64            `json:"rate"` // changes a second that were made
	Changes      map[string]int     `json:"changes"`
	Late         int                `json:"late"`
	Failures     int                `json:"failures"`
	Failed       []string           `json:"failed,omitempty"`
	SteadyMemory memory             `json:"steadyMemory"`
	CPU          map[string]float64 `json:"cpu"`  // percent of a core
	Idle         float64            `json:"idle"` // of the whole machine, percent
	Enforced     spread             `json:"enforced"`
	Heard        spread             `json:"heard"`      // by a plain watch
	Resolution   time.Duration      `json:"resolution"` // p99

	PodEvents  float64       `json:"podEvents"`  // a second
	Ended      int64         `json:"ended"`      // watches of ours that the API server ended
	EventBytes float64       `json:"eventBytes"` // protobuf
	WireBytes  float64       `json:"wireBytes"`  // with TLS and HTTP/2
	WatchCPU   time.Duration `json:"watchCPU"`   // of the API server for one event to one watch

	SecondSync time.Duration `json:"secondSync"` // of an agent that starts where pods run
	Enrolled   time.Duration `json:"enrolled"`   // since that start
	Complaints int           `json:"complaints"` // of the agent's log
	Complaint  []string      `json:"complaint,omitempty"`
}

func (b *bench) size() string {
	return fmt.Sprintf("%d pods (%d here) on %d nodes, %d Services, %d PeerAuthentications, %d namespaces",
		b.options.pods, b.options.localPods, b.options.nodes, b.options.services, b.options.policies, b.options.namespaces)
}

func (r *report) setChanges(load *changer, samples *sampler, took time.Duration) {
	writes, byKind := load.total()
	times, gap, failed := samples.result()
	byKind["PeerAuthentication, timed"] = len(times)
	r.Rate, r.Changes = float64(writes+len(times))/took.Seconds(), byKind
	r.Enforced, r.Resolution = newSpread(times), gap
	load.mu.Lock()
	defer load.mu.Unlock()
	r.Late, r.Failures = load.late, load.failure+len(failed)
	for _, err := range append(load.failed, failed[:min(len(failed), maxFailures)]...) {
		r.Failed = append(r.Failed, err.Error())
	}
}

// What the agent may cost at most.
const (
	targetMemory  = 250e6
	targetCPU     = 20.0
	targetEnforce = 200 * time.Millisecond
)

// line is one row of the table.
type line struct {
	what, value, target string
	missed              bool
}

func (r *report) lines() []line {
	enforced := func(name string, d time.Duration, target string, missed bool) line {
		return line{"policy written to enforced, " + name, milliseconds(d), target, missed}
	}
	return []line{
		{"memory, most ever (VmHWM)", r.most(), "250 MB", float64(r.SteadyMemory.Most) > targetMemory},
		{"memory during changes, median", megabytes(r.SteadyMemory), "250 MB", float64(r.SteadyMemory.Now) > targetMemory},
		{"memory at rest, all enrolled", megabytes(r.RestMemory), "", false},
		{"CPU during changes", fmt.Sprintf("%.1f %% of a core", r.CPU["agent"]), "20 %", r.CPU["agent"] > targetCPU},
		enforced("median", r.Enforced.Median, "", false),
		enforced("p99", r.Enforced.P99, "200 ms", r.Enforced.P99 > targetEnforce || r.Enforced.Count == 0),
		enforced("max", r.Enforced.Max, "", false),
		{"policy written to heard by a plain watch, p99", milliseconds(r.Heard.P99), "", false},
		{"start to first snapshot", seconds(r.FirstSync) + fmt.Sprintf(" (%.1f s CPU)", r.SyncCPU.Seconds()), "", false},
		{"pod announced by CNI to enforced, median", milliseconds(r.Add.Median), "", false},
		{"pod announced by CNI to enforced, max", milliseconds(r.Add.Max), "", false},
		{"restart to first snapshot", seconds(r.SecondSync), "", false},
		{"restart to all pods enrolled", seconds(r.Enrolled), "", false},
	}
}

func (r *report) most() string { return fmt.Sprintf("%.0f MB", float64(r.SteadyMemory.Most)/1e6) }

func megabytes(m memory) string {
	return fmt.Sprintf("%.0f MB (%.0f without the program's file)", float64(m.Now)/1e6, float64(m.Anon)/1e6)
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1e3) }
func seconds(d time.Duration) string      { return fmt.Sprintf("%.1f s", d.Seconds()) }

// missed is an error when a target was.
func (r *report) missed() error {
	var errs []error
	for _, l := range r.lines() {
		if l.missed {
			errs = append(errs, fmt.Errorf("%s: %s, target %s", l.what, l.value, l.target))
		}
	}
	if r.Failures > 0 {
		errs = append(errs, fmt.Errorf("%d changes failed", r.Failures))
	}
	return errors.Join(errs...)
}

func (r *report) write(out io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\n\n", r.Cluster)
	fmt.Fprintln(w, "agent\tmeasured\ttarget\t")
	for _, l := range r.lines() {
		mark := ""
		if l.missed {
			mark = "MISSED"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.what, l.value, l.target, mark)
	}
	fmt.Fprintln(w, "\nbeside it\tCPU, % of a core\t")
	for _, name := range slices.Sorted(maps.Keys(r.CPU)) {
		if name != "agent" {
			fmt.Fprintf(w, "%s\t%.1f\t\n", name, r.CPU[name])
		}
	}
	fmt.Fprintf(w, "idle, %% of all cores\t%.1f\t\n", r.Idle)
	if err := w.Flush(); err != nil {
		return err
	}
	return r.writeNotes(out)
}

func (r *report) writeNotes(out io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%.0f changes a second were made", r.Rate)
	for i, name := range slices.Sorted(maps.Keys(r.Changes)) {
		fmt.Fprintf(&text, "%s%s %d", map[bool]string{true: ": ", false: ", "}[i == 0], name, r.Changes[name])
	}
	fmt.Fprintf(&text, ".\n%d had to wait for others; %d failed.\n", r.Late, r.Failures)
	for _, f := range r.Failed {
		fmt.Fprintf(&text, "  %s\n", f)
	}
	fmt.Fprintf(&text, "%d policies were timed, from the API server's answer to the mode in the kernel's map, to %s (p99).\n",
		r.Enforced.Count, milliseconds(r.Resolution))
	fmt.Fprintf(&text, "The last agent's log has %d warnings and errors.\n", r.Complaints)
	for _, c := range r.Complaint {
		fmt.Fprintf(&text, "  %s\n", c)
	}
	r.writePaper(&text)
	_, err := io.WriteString(out, text.String())
	return err
}

// writePaper says what was not measured: a cluster of a thousand nodes, each of which watches all pods.
func (r *report) writePaper(text *strings.Builder) {
	const nodes = 1000
	if r.PodEvents == 0 {
		return
	}
	fmt.Fprintf(text, "\nA watch of all pods: %.0f events a second of %.0f bytes (%.0f with TLS and HTTP/2).\n",
		r.PodEvents, r.EventBytes, r.WireBytes)
	if r.Ended > 0 {
		fmt.Fprintf(text, "The API server ended %d of the watches that counted this: they were opened again.\n", r.Ended)
	}
	fmt.Fprintf(text, "On paper, %d nodes: %.0f events and %.0f MB a second leave the API servers",
		nodes, nodes*r.PodEvents, nodes*r.PodEvents*r.WireBytes/1e6)
	if r.WatchCPU > 0 {
		fmt.Fprintf(text, ",\nwhich takes %.1f cores of them at the %.1f µs that one event to one watch took here",
			nodes*r.PodEvents*r.WatchCPU.Seconds(), float64(r.WatchCPU)/1e3)
	}
	text.WriteString(".\n")
}
