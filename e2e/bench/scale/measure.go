package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/agent/datapath"
)

// settleTime is how long the agent is left alone before its memory at rest is looked at.
const settleTime = 5 * time.Second

// bench is one run.
type bench struct {
	options   options
	progress  io.Writer
	place     *place
	cluster   *cluster
	runtime   *containerRuntime
	authority *authority
	plan      *plan
	pods      []*sampled
	agent     *agent
	report    *report
}

// measureAll builds everything, measures and removes everything. What was measured before a failure is returned
// beside the error.
func measureAll(ctx context.Context, o options, progress io.Writer) (_ *report, err error) {
	p, err := newPlace(ctx, o.runDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.lab.Close()) }()
	b := &bench{options: o, progress: progress, place: p, plan: newPlan(o)}
	if err := b.makePods(); err != nil {
		return nil, err
	}
	if b.runtime, err = startRuntime(p.criSocket()); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.runtime.close()) }()
	if b.authority, err = startAuthority(p); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.authority.close()) }()
	if err := b.makeCluster(ctx); err != nil {
		return nil, err
	}
	defer func() { b.cluster.stop() }()
	b.report = &report{Cluster: b.size()}
	err = b.measure(ctx)
	b.agent.stopIfStarted()
	return b.report, err
}

// makeCluster starts the API server with everything in it.
func (b *bench) makeCluster(ctx context.Context) error {
	fmt.Fprintln(b.progress, "starting etcd and kube-apiserver")
	keep, err := keptCluster(b.options)
	if err != nil {
		return err
	}
	c := &cluster{place: b.place}
	there, err := keep.restore(c.etcdData())
	if err == nil {
		err = c.start(ctx, b.options)
	}
	b.cluster = c
	switch {
	case err != nil:
	case there:
		fmt.Fprintln(b.progress, "the cluster was made by an earlier run")
		err = b.findPods(ctx)
	default:
		if err = b.seedAll(ctx); err == nil && b.options.keep != "" {
			err = c.save(ctx, b.options, keep)
		}
	}
	if err != nil {
		c.stop()
	}
	return err
}

// findPods learns the UIDs of the measured node's pods in a cluster that was there.
func (b *bench) findPods(ctx context.Context) error {
	for _, p := range b.pods {
		pod, err := b.cluster.core.CoreV1().Pods(p.slot.namespace).Get(ctx, p.slot.name(), meta.GetOptions{})
		if err != nil {
			return fmt.Errorf("pod of an earlier run: %w", err)
		}
		p.slot.uid = string(pod.UID)
	}
	return nil
}

func (b *bench) makePods() error {
	for i, s := range b.plan.slots[:b.options.localPods] {
		pod, err := b.place.lab.AddPod(b.place.node, s.namespace, fmt.Sprintf("pod-%d", i))
		if err != nil {
			return err
		}
		netns, err := os.Open(pod.NetnsPath)
		if err != nil {
			return err
		}
		cookie, err := datapath.NetnsCookie(netns)
		if err = errors.Join(err, netns.Close()); err != nil {
			return fmt.Errorf("pod %s: %w", pod, err)
		}
		s.local, s.addresses = pod, []netip.Addr{pod.IP4, pod.IP6}
		b.pods = append(b.pods, &sampled{slot: s, cookie: cookie, mode: seedMode(1 + i)})
	}
	return nil
}

// seedAll makes the objects. The agent's own DaemonSet is there too, because it watches whether it is deleted.
func (b *bench) seedAll(ctx context.Context) error {
	c := b.cluster.core
	if _, err := c.CoreV1().Namespaces().Create(ctx, &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: agentNamespace}}, meta.CreateOptions{}); err != nil {
		return err
	}
	labels := map[string]string{"app": agentDaemonSet}
	_, err := c.AppsV1().DaemonSets(agentNamespace).Create(ctx, &apps.DaemonSet{
		ObjectMeta: meta.ObjectMeta{Name: agentDaemonSet},
		Spec: apps.DaemonSetSpec{
			Selector: &meta.LabelSelector{MatchLabels: labels},
			Template: core.PodTemplateSpec{
				ObjectMeta: meta.ObjectMeta{Labels: labels},
				Spec:       core.PodSpec{Containers: []core.Container{{Name: "agent", Image: "culvert"}}},
			},
		},
	}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	return b.cluster.seed(ctx, b.plan, b.progress)
}

func (b *bench) measure(ctx context.Context) (err error) {
	if err := b.firstStart(ctx); err != nil {
		return err
	}
	samples, err := newSampler(b.cluster, b.pods)
	if err != nil {
		return err
	}
	defer samples.close()
	if err := samples.settle(ctx); err != nil {
		return err
	}
	load := newChanger(b.cluster, b.plan)
	if err := b.change(ctx, load, samples); err != nil {
		return err
	}
	if err := b.countWatches(ctx, load); err != nil {
		return err
	}
	if err := b.restart(ctx); err != nil {
		return err
	}
	b.report.Complaints, b.report.Complaint, err = complaints(b.agent.log)
	return errors.Join(err, ctx.Err())
}

// firstStart is that of an agent on a node on which it never ran, whose pods start then.
func (b *bench) firstStart(ctx context.Context) (err error) {
	fmt.Fprintln(b.progress, "starting the agent")
	if b.agent, err = startAgent(ctx, b.cluster, b.authority, b.options); err != nil {
		return err
	}
	r := b.report
	if r.FirstSync, err = b.agent.synced(ctx); err != nil {
		return err
	}
	if r.SyncCPU, err = cpuTime(b.agent.pid()); err != nil {
		return err
	}
	if r.SyncMemory, err = memoryOf(b.agent.pid()); err != nil {
		return err
	}
	times, err := announce(ctx, b.cluster, b.pods, b.runtime)
	if err != nil {
		return err
	}
	r.Add = newSpread(times)
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	r.RestMemory, err = memoryOf(b.agent.pid())
	return err
}

// change measures while there are changes.
func (b *bench) change(ctx context.Context, load *changer, samples *sampler) error {
	fmt.Fprintf(b.progress, "%d changes a second for %s\n", b.options.rate, b.options.duration)
	profile, err := b.startProfile(ctx)
	if err != nil {
		return err
	}
	defer func() { profile.stop(b.progress) }()
	m, err := startMeter(b.pids())
	if err != nil {
		return err
	}
	ownBefore := ownCPU()
	idleBefore, totalBefore, err := machineIdle()
	if err != nil {
		return err
	}
	counter, err := startWatchers(ctx, b.cluster, 1)
	if err != nil {
		return err
	}
	if samples.reference, err = startReference(ctx, b.cluster); err != nil {
		return errors.Join(err, counter.stop())
	}
	phase, cancel := context.WithTimeout(ctx, b.options.duration)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { load.run(phase, b.options.rate-b.options.samples) })
	running.Go(func() { samples.run(phase, b.options.samples) })
	r := b.report
	r.SteadyMemory, err = steadyMemory(phase, b.agent.pid())
	cancel()
	running.Wait()
	r.Heard = newSpread(samples.reference.stop())
	if err := errors.Join(err, counter.stop(), b.agent.check(), ctx.Err()); err != nil {
		return err
	}
	var took time.Duration
	if r.CPU, took, err = m.read(); err != nil {
		return err
	}
	r.CPU["load"] = 100 * (ownCPU() - ownBefore).Seconds() / took.Seconds()
	idle, total, err := machineIdle()
	r.Idle = 100 * (idle - idleBefore).Seconds() / (total - totalBefore).Seconds()
	r.setChanges(load, samples, took)
	r.PodEvents = float64(counter.events.Load()) / took.Seconds()
	r.Ended += counter.ended.Load()
	if n := counter.events.Load(); n > 0 {
		r.EventBytes, r.WireBytes = float64(counter.payload.Load())/float64(n), float64(counter.wire.Load())/float64(n)
	}
	return err
}

func (b *bench) pids() map[string]int {
	return map[string]int{"agent": b.agent.pid(), "kube-apiserver": b.cluster.api.pid(), "etcd": b.cluster.etcd.pid()}
}

// countWatches finds out what one more watch of all pods costs the API server: the same changes go on, without
// further watches, with them, and without them again, so that a trend does not count.
func (b *bench) countWatches(ctx context.Context, load *changer) error {
	if b.options.watchers == 0 {
		return nil
	}
	fmt.Fprintf(b.progress, "the same with %d more watches of all pods\n", b.options.watchers)
	before, _, err := b.apiServerShare(ctx, load, 0)
	if err != nil {
		return err
	}
	with, events, err := b.apiServerShare(ctx, load, b.options.watchers)
	if err != nil {
		return err
	}
	after, _, err := b.apiServerShare(ctx, load, 0)
	if err != nil {
		return err
	}
	if events > 0 {
		b.report.WatchCPU = time.Duration((with - (before+after)/2) / 100 / events * float64(time.Second))
	}
	return nil
}

// apiServerShare is the API server's CPU in percent of a core, and how many events a second all watches got.
func (b *bench) apiServerShare(ctx context.Context, load *changer, count int) (share, events float64, err error) {
	w, err := startWatchers(ctx, b.cluster, count)
	if err != nil {
		return 0, 0, err
	}
	m, err := startMeter(b.pids())
	if err != nil {
		return 0, 0, errors.Join(err, w.stop())
	}
	phase, cancel := context.WithTimeout(ctx, max(b.options.duration/3, time.Second))
	defer cancel()
	load.run(phase, b.options.rate)
	shares, took, err := m.read()
	got := w.events.Load()
	b.report.Ended += w.ended.Load()
	if err := errors.Join(err, w.stop(), ctx.Err()); err != nil {
		return 0, 0, err
	}
	return shares["kube-apiserver"], float64(got) / took.Seconds(), nil
}

// restart is that of an agent on a node whose pods run.
func (b *bench) restart(ctx context.Context) (err error) {
	fmt.Fprintln(b.progress, "starting the agent again")
	b.agent.stop()
	if b.agent, err = startAgent(ctx, b.cluster, b.authority, b.options); err != nil {
		return err
	}
	r := b.report
	if r.SecondSync, err = b.agent.synced(ctx); err != nil {
		return err
	}
	r.Enrolled, err = b.agent.enrolled(ctx, len(b.pods))
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
