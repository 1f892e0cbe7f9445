package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// realPrometheus is one that runs.
type realPrometheus struct {
	t       *testing.T
	address string
}

// startPrometheus scrapes the targets and follows the rules, both every second.
func startPrometheus(t *testing.T, all []target) *realPrometheus {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatalf("prometheus is missing (apt-get install --no-install-recommends prometheus): %v", err)
	}
	rules, err := filepath.Abs(filepath.Join(root, "daemonset/rules/culvert.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	type static struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	var jobs []map[string]any
	for _, job := range []string{"culvert-agent", "culvert-tunnel", "culvert-ca"} {
		var of []static
		for _, one := range all {
			if one.job == job {
				labels := map[string]string{}
				if one.node != "" {
					labels["node"] = one.node
				}
				of = append(of, static{[]string{one.address}, labels})
			}
		}
		jobs = append(jobs, map[string]any{"job_name": job, "static_configs": of})
	}
	config, err := json.Marshal(map[string]any{ // which is YAML
		"global":     map[string]string{"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
		"rule_files": []string{rules}, "scrape_configs": jobs,
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &realPrometheus{t, freeAddress(t)}
	var log strings.Builder
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "config.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.address, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the parent that Pdeathsig means is this thread
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // ended by a signal
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("prometheus: %s", log.String())
		}
	})
	waitFor(t, "prometheus", 20*time.Second, func() bool {
		r, err := http.Get("http://" + p.address + "/-/ready")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	return p
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func waitFor(t *testing.T, what string, limit time.Duration, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("%s: not within %s", what, limit)
}

// get asks Prometheus' API.
func (p *realPrometheus) get(path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+"/api/v1/"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: into}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// series is one that a query returned, with the values that are numbers.
type series struct {
	labels map[string]string
	values []float64
}

// query evaluates now.
func (p *realPrometheus) query(expr string) ([]series, error) {
	return p.evaluate("query", url.Values{"query": {expr}})
}

// queryRange evaluates for each second since begin.
func (p *realPrometheus) queryRange(expr string, begin time.Time) ([]series, error) {
	return p.evaluate("query_range", url.Values{"query": {expr}, "step": {"1"},
		"start": {strconv.FormatInt(begin.Unix(), 10)}, "end": {strconv.FormatInt(time.Now().Unix(), 10)}})
}

func (p *realPrometheus) evaluate(path string, query url.Values) ([]series, error) {
	type sample [2]any
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  sample
			Values []sample
		}
	}
	if err := p.get(path, query, &data); err != nil {
		return nil, err
	}
	var all []series
	for _, r := range data.Result {
		s := series{labels: r.Metric}
		for _, v := range append(r.Values, r.Value) {
			text, _ := v[1].(string)
			if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(f) {
				s.values = append(s.values, f)
			}
		}
		if len(s.values) > 0 {
			all = append(all, s)
		}
	}
	return all, nil
}

// alerts are those that are pending or firing, by name, with their state.
func (p *realPrometheus) alerts() (map[string]string, error) {
	var data struct {
		Alerts []struct {
			Labels map[string]string
			State  string
		}
	}
	if err := p.get("alerts", nil, &data); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, a := range data.Alerts {
		if all[a.Labels["alertname"]] != "firing" {
			all[a.Labels["alertname"]] = a.State
		}
	}
	return all, nil
}

// names are those of all metrics that were scraped from a job.
func (p *realPrometheus) names(job string) ([]string, error) {
	var names []string
	err := p.get("label/__name__/values", url.Values{"match[]": {`{job="` + job + `"}`}}, &names)
	return names, err
}
