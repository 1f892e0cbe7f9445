package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// cell is one place in the table.
type cell struct{ design, workload string }

// sample is one measurement.
type sample struct {
	// Rate is MB/s for bulk, balls or connections per second otherwise.
	Rate float64 `json:"rate"`
	// CPUPerGB is the relays' CPU seconds for 10^9 bytes of payload, CPUPerThousand for 1000 balls or
	// connections. Both are absent without relays.
	CPUPerGB       float64 `json:"cpuSecondsPerGB,omitempty"`
	CPUPerThousand float64 `json:"cpuSecondsPerThousand,omitempty"`
	P50            float64 `json:"p50Microseconds,omitempty"`
	P99            float64 `json:"p99Microseconds,omitempty"`
}

func newSample(l loadResult, cpu time.Duration, relays bool) sample {
	s := sample{P50: l.P50, P99: l.P99}
	if l.Count > 0 {
		s.Rate = float64(l.Count) / l.Seconds
	} else {
		s.Rate = float64(l.Bytes) / 1e6 / l.Seconds
	}
	if relays {
		if l.Bytes > 0 {
			s.CPUPerGB = cpu.Seconds() / (float64(l.Bytes) / 1e9)
		}
		if l.Count > 0 {
			s.CPUPerThousand = cpu.Seconds() / (float64(l.Count) / 1e3)
		}
	}
	return s
}

// report holds all samples of a run.
type report struct {
	Rounds   int
	Duration string
	samples  map[cell][]sample
}

// median returns the median of each figure on its own, which need not belong to one sample.
func (r *report) median(design, workload string) sample {
	samples := r.samples[cell{design, workload}]
	of := func(figure func(sample) float64) float64 {
		values := make([]float64, len(samples))
		for i, s := range samples {
			values[i] = figure(s)
		}
		return median(values)
	}
	return sample{
		Rate:           of(func(s sample) float64 { return s.Rate }),
		CPUPerGB:       of(func(s sample) float64 { return s.CPUPerGB }),
		CPUPerThousand: of(func(s sample) float64 { return s.CPUPerThousand }),
		P50:            of(func(s sample) float64 { return s.P50 }),
		P99:            of(func(s sample) float64 { return s.P99 }),
	}
}

// median sorts values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// ratio is the median over the rounds of a's rate divided by b's of the same round.
func (r *report) ratio(workload, a, b string) float64 {
	as, bs := r.samples[cell{a, workload}], r.samples[cell{b, workload}]
	values := make([]float64, min(len(as), len(bs)))
	for i := range values {
		values[i] = as[i].Rate / bs[i].Rate
	}
	return median(values)
}

func title(workload string) string {
	switch workload {
	case bulk:
		return "bulk, 1 stream (MB/s)"
	case pingPong:
		return fmt.Sprintf("ping-pong, %d KiB, %d connections (balls/s)", ballSize>>10, balls)
	default:
		return fmt.Sprintf("connect, request, close; %d at a time (connections/s)", requesters)
	}
}

func (r *report) writeTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for i, workload := range workloads() {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, title(workload))
		fmt.Fprintln(w, "design\trate\tof direct\tof copy\tp50 µs\tp99 µs\tCPU s/GB\tCPU s/1000\t")
		for _, design := range designs() {
			m := r.median(design, workload)
			fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f\t%s\t%s\t%s\t%s\t\n", design, m.Rate,
				r.ratio(workload, design, direct), r.ratio(workload, design, copied),
				figure("%.0f", m.P50), figure("%.0f", m.P99), figure("%.2f", m.CPUPerGB), figure("%.3f", m.CPUPerThousand))
		}
	}
	fmt.Fprintf(w, "\nMedians of %d rounds of %s. Ratios are of rates, taken round by round. CPU: user and system time of both relays,\n",
		r.Rounds, r.Duration)
	fmt.Fprintln(w, "not of the load and the application. Compare figures of one run only.")
	return w.Flush()
}

// figure formats v, or a dash where there is nothing to measure.
func figure(format string, v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

// jsonResult is what one design did in one workload.
type jsonResult struct {
	Design   string   `json:"design"`
	Workload string   `json:"workload"`
	Median   sample   `json:"median"`
	OfDirect float64  `json:"ofDirect"`
	OfCopy   float64  `json:"ofCopy"`
	Samples  []sample `json:"samples"`
}

func (r *report) writeJSON(out io.Writer) error {
	var results []jsonResult
	for _, workload := range workloads() {
		for _, design := range designs() {
			results = append(results, jsonResult{
				Design: design, Workload: workload, Median: r.median(design, workload),
				OfDirect: r.ratio(workload, design, direct), OfCopy: r.ratio(workload, design, copied),
				Samples: r.samples[cell{design, workload}],
			})
		}
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Rounds   int          `json:"rounds"`
		Duration string       `json:"duration"`
		Results  []jsonResult `json:"results"`
	}{r.Rounds, r.Duration, results})
}
