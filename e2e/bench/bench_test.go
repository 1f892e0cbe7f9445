package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain plays a role if this process is a child of a test.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestRun plays one short round of everything. It asserts that figures are there, never how large they are.
func TestRun(t *testing.T) {
	t.Setenv("GORACE", "atexit_sleep_ms=0") // or each child waits a second before it ends
	var out bytes.Buffer
	err := run(t.Context(), []string{"--rounds", "1", "--duration", "50ms", "-o", "json"}, &out, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Results []jsonResult }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("output is not JSON: %v\n%s", err, &out)
	}
	if want := len(designs()) * len(workloads()); len(got.Results) != want {
		t.Fatalf("%d results, want %d", len(got.Results), want)
	}
	for _, r := range got.Results {
		if r.Median.Rate <= 0 || r.OfDirect <= 0 || r.OfCopy <= 0 {
			t.Errorf("%s over %s: %+v", r.Workload, r.Design, r)
		}
	}
}

func TestParseOptions(t *testing.T) {
	tests := []struct {
		args string
		want string // part of the error; "" for none
	}{
		{"", ""},
		{"--rounds 3 --duration 100ms -o json", ""},
		{"--rounds 0", "--rounds 0"},
		{"--duration 0s", "must be positive"},
		{"-o yaml", "table or json"},
		{"more", "unexpected argument"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			_, err := parseOptions(strings.Fields(tt.args), t.Output())
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 2, 9}, 3},
	} {
		if got := median(slices.Clone(tt.values)); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestNewSample(t *testing.T) {
	s := newSample(loadResult{Seconds: 2, Bytes: 4e9}, 6*time.Second, true)
	if s.Rate != 2000 || s.CPUPerGB != 1.5 || s.CPUPerThousand != 0 {
		t.Errorf("bulk: %+v", s)
	}
	s = newSample(loadResult{Seconds: 2, Bytes: 1e9, Count: 500}, time.Second, true)
	if s.Rate != 250 || s.CPUPerGB != 1 || s.CPUPerThousand != 2 {
		t.Errorf("counted: %+v", s)
	}
	if s := newSample(loadResult{Seconds: 1, Bytes: 1}, time.Second, false); s.CPUPerGB != 0 {
		t.Errorf("without relays: %+v", s)
	}
}

// TestRatio: a machine that is slow in one round changes both designs and not their ratio.
func TestRatio(t *testing.T) {
	r := &report{samples: map[cell][]sample{
		{carry, bulk}:  {{Rate: 50}, {Rate: 500}, {Rate: 490}},
		{direct, bulk}: {{Rate: 100}, {Rate: 1000}, {Rate: 1000}},
	}}
	if got := r.ratio(bulk, carry, direct); got != 0.5 {
		t.Errorf("ratio = %v, want 0.5", got)
	}
}

func TestTable(t *testing.T) {
	r := &report{Rounds: 1, Duration: "1s", samples: map[cell][]sample{}}
	for _, w := range workloads() {
		for _, d := range designs() {
			r.samples[cell{d, w}] = []sample{{Rate: 7}}
		}
	}
	var out bytes.Buffer
	if err := r.writeTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bulk, 1 stream", "ping-pong", "connect, request, close", "1.00", "rounds of 1s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}
