// Command ca says how many certificates a second the built-in CA issues on this machine: medians of several runs of the
// benchmarks in agent/identity/ca/server. Client and server share its processors, over TLS and gRPC on loopback.
//
//	go run ./e2e/bench/ca
//	go run ./e2e/bench/ca -runs 9 -duration 5s
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

const benchmarks = "^Benchmark(Issue|IssueReadyRequest|CreateCertificate)$"

func main() {
	runs := flag.Int("runs", 5, "runs of each benchmark")
	duration := flag.Duration("duration", 2*time.Second, "of one run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *runs, *duration)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench ca:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, runs int, duration time.Duration) error {
	before := load()
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", benchmarks, "-benchtime", duration.String(),
		"-count", strconv.Itoa(runs), "github.com/culvert-mesh/culvert/agent/identity/ca/server")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go test: %w\n%s", err, out)
	}
	all := parse(string(out))
	fmt.Printf("%d processors; load of the last minute before %s, after %s; medians of %d runs of %s\n\n",
		runtime.GOMAXPROCS(0), before, load(), runs, duration)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "WHAT\tCERTIFICATES/S\tFROM\tTO\tCPU µs EACH")
	for _, b := range []struct{ name, what string }{
		{"Issue", "agent's key and CSR, gRPC, CA, agent's check of the answer"},
		{"IssueReadyRequest", "the same without the agent's key, CSR and check"},
		{"CreateCertificate", "the CA alone, without gRPC"},
	} {
		r := all[b.name]
		if r == nil {
			return fmt.Errorf("go test has no result of Benchmark%s:\n%s", b.name, out)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%.0f\n", b.what, median(r.rates), slices.Min(r.rates), slices.Max(r.rates), median(r.costs))
	}
	return w.Flush()
}

// results are those of one benchmark's runs.
type results struct{ rates, costs []float64 }

// parse reads what go test prints.
func parse(text string) map[string]*results {
	line := regexp.MustCompile(`^Benchmark(\w+)-\d+\s.*?([\d.]+) cpu-µs/issue\s+([\d.]+) issues/s`)
	all := map[string]*results{}
	for l := range strings.Lines(text) {
		m := line.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		cost, costErr := strconv.ParseFloat(m[2], 64)
		rate, rateErr := strconv.ParseFloat(m[3], 64)
		if costErr != nil || rateErr != nil {
			continue
		}
		if all[m[1]] == nil {
			all[m[1]] = &results{}
		}
		all[m[1]].rates = append(all[m[1]].rates, rate)
		all[m[1]].costs = append(all[m[1]].costs, cost)
	}
	return all
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
