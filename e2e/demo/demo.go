// Package demo plays the walkthrough on a lab of two nodes: real agents and tunnels, real HTTP servers and
// clients in pods of their own, the policies as manifests in a folder, and a capture on the link between
// the nodes that shows what can be read there.
//
// For every request the client says what it experienced, the server what it saw, the tunnels' logs how it
// was carried, and the capture whether it was readable. A row is as expected only if all of them are.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

// Options says how to run the walkthrough.
type Options struct {
	Binary   string // the culvert program; default: this one
	RunDir   string // default: DefaultRunDir
	Prefix   string // of namespaces and the cgroup; default: DefaultPrefix
	Versions []int  // IP versions; default: 4
	Steps    []string
	Keep     bool // leave everything standing at the end
	Progress io.Writer
}

// ErrInterrupted says that the walkthrough was ended from outside. Everything is removed then.
var ErrInterrupted = errors.New("demo: interrupted")

// Run plays the walkthrough. The result is never nil and holds the rows so far when there is an error; an
// error means that it could not be played to the end, not that a row came out differently.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	o = o.withDefaults()
	begin := time.Now()
	result = &Result{Rows: []Row{}}
	for _, name := range o.Steps {
		if !slices.Contains(Steps(), name) {
			return result, fmt.Errorf("demo: no step %q; there are: %s", name, strings.Join(Steps(), ", "))
		}
	}
	progress := func(text string) { fmt.Fprintf(o.Progress, "[%5.1fs] %s\n", time.Since(begin).Seconds(), text) }
	mesh, err := StartMesh(ctx, MeshOptions{Binary: o.Binary, RunDir: o.RunDir, Prefix: o.Prefix, Progress: progress})
	defer func() {
		result.Kept = mesh.lab != nil && o.Keep && ctx.Err() == nil
		if mesh.lab != nil && !result.Kept {
			progress("removing everything")
			if ctx.Err() != nil {
				err = ErrInterrupted // what it interrupted is no news
			}
			err = errors.Join(err, mesh.Close())
		}
		result.finish(err, time.Since(begin))
	}()
	if err != nil {
		return result, explainObstacle(err, o.RunDir)
	}
	for _, name := range o.Steps {
		rows, err := mesh.Play(ctx, name, o.Versions, progress)
		result.Rows = append(result.Rows, rows...)
		if err != nil {
			return result, fmt.Errorf("step %q: %w", name, err)
		}
	}
	return result, nil
}

func (o Options) withDefaults() Options {
	if o.RunDir == "" {
		o.RunDir = DefaultRunDir
	}
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if len(o.Versions) == 0 {
		o.Versions = []int{4}
	}
	if len(o.Steps) == 0 {
		o.Steps = Steps()
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	return o
}

func (r *Result) finish(err error, took time.Duration) {
	r.Took = took
	r.OK = err == nil && len(r.Rows) > 0
	for _, row := range r.Rows {
		r.OK = r.OK && row.OK
	}
	if err != nil {
		r.Error = err.Error()
	}
}

// explainObstacle adds the way out to the error of a lab that cannot start.
func explainObstacle(err error, runDir string) error {
	var inTheWay *lab.InTheWayError
	if errors.As(err, &inTheWay) {
		return fmt.Errorf("%w\nremove what an earlier run left with: culvert demo down --run-dir %s (the one of that run)", err, runDir)
	}
	return err
}

// Down removes what a kept or crashed run left.
func Down(runDir string) error {
	if runDir == "" {
		runDir = DefaultRunDir
	}
	return lab.Down(runDir)
}

// LookRound tells how to look at a run that was kept.
func LookRound(runDir, prefix string) string {
	return fmt.Sprintf(`Everything is left standing:
  ls %[1]s/config                      the manifests; change one and watch %[1]s/logs
  tail -f %[1]s/logs/tunnel-a.log      connections, handshakes, refusals
  ip netns list                        nodes and pods
  nsenter --net=/run/netns/%[2]s-pod-test_legacy-app curl -sv http://10.77.1.10:9080/
The last one is refused while config/default-strict.yaml is there. Plaintext from a shell works so; the pods' own identity is used by processes in their cgroups:
  sh -c 'echo $$ > CGROUP/cgroup.procs; exec nsenter --net=/run/netns/%[2]s-pod-test_nginx curl -s http://10.77.255.10:9080/'
where CGROUP is %[2]s/b/test_nginx below the cgroup2 mount.
Remove it with:
  culvert demo down --run-dir %[1]s
`, runDir, prefix)
}
