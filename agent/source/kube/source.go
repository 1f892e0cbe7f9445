package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube/report"
	"github.com/culvert-mesh/culvert/policy"
)

// publishEvery is the least time between two Snapshots.
const publishEvery = 20 * time.Millisecond

// tellEvery is the least time between two lists of all policies.
const tellEvery = 5 * time.Second

// Options of a Source.
type Options struct {
	Config *rest.Config // of the API server
	Node   string       // the node that the agent runs on
	// RootNamespace is the mesh's, for messages; default policy.DefaultRootNamespace.
	RootNamespace string

	// Namespace and DaemonSet are the agent's own. Without a DaemonSet nobody waits for its end. Pod is the name of the
	// agent's pod: it tells which DaemonSet is meant, whatever its name. Without it only the Namespace's end counts.
	Namespace, DaemonSet, Pod string

	// Policies is told all policies and what is wrong with those that cannot be used, when that changed, every few
	// seconds at most. It returns at once. May be nil.
	Policies func(valid []report.PolicyRef, problems []report.PolicyProblem)

	Logger     *slog.Logger          // default: slog.Default()
	Registerer prometheus.Registerer // nil: no metrics

	pace *pace // for tests
}

// Source follows a cluster's API server.
type Source struct {
	options   Options
	log       *slog.Logger
	clients   *clients
	metrics   *metrics
	wake      chan struct{}
	state     *state
	slots     []*slot
	jobs      []job
	trust     *health // of the policies
	uninstall *uninstall
}

// job is a feed and what it fills.
type job struct {
	feed *watchFeed
	to   *slot
}

var _ source.Source = (*Source)(nil)

// New returns a Source. Nothing is asked of the API server before Run.
func New(o Options) (*Source, error) {
	if o.Config == nil || o.Node == "" {
		return nil, errors.New("source from Kubernetes: it needs an API server and the name of the node")
	}
	if o.DaemonSet != "" && o.Namespace == "" {
		return nil, errors.New("source from Kubernetes: a DaemonSet needs its namespace")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.pace == nil {
		p := defaultPace()
		o.pace = &p
	}
	c, err := newClients(o.Config)
	if err != nil {
		return nil, fmt.Errorf("source from Kubernetes: %w", err)
	}
	s := &Source{
		options: o, log: o.Logger, clients: c, metrics: newMetrics(),
		wake: make(chan struct{}, 1), state: newState(o.Node, cmp.Or(o.RootNamespace, policy.DefaultRootNamespace), o.Logger),
	}
	if err := s.addResources(); err != nil {
		return nil, fmt.Errorf("source from Kubernetes: %w", err)
	}
	s.addUninstall()
	if err := s.metrics.register(o.Registerer); err != nil {
		return nil, err
	}
	return s, nil
}

// addResources sets up the feeds of everything that a Snapshot has. The order is that in which changes are applied:
// namespaces and policies before the pods that they are for.
func (s *Source) addResources() error {
	st := s.state
	s.addCustom("security.istio.io", "peerauthentications", convertPolicy, st.policies, "v1", "v1beta1")
	s.trust = s.jobs[0].feed.health
	s.addCustom("networking.istio.io", "destinationrules", convertRule, st.rules, "v1", "v1beta1", "v1alpha3")
	for _, r := range []struct {
		gv       schema.GroupVersion
		resource string
		list     runtime.Object
		convert  converter
		table    table
	}{
		{core.SchemeGroupVersion, "namespaces", &core.NamespaceList{}, convertNamespace, namespaceTable{st.index}},
		{core.SchemeGroupVersion, "nodes", &core.NodeList{}, convertNode, nodeTable{st.ranges}},
		{
			networking.SchemeGroupVersion, "servicecidrs", &networking.ServiceCIDRList{},
			convertServiceCIDR, serviceRangeTable{st.ranges},
		},
		{core.SchemeGroupVersion, "services", &core.ServiceList{}, convertService, serviceTable{st.services}},
		{
			discovery.SchemeGroupVersion, "endpointslices", &discovery.EndpointSliceList{},
			convertSlice, sliceTable{st.services},
		},
		{
			core.SchemeGroupVersion, "pods", &core.PodList{},
			podConverter{s.options.Node, &labelSets{}}.convert, podTable{st.index},
		},
	} {
		at, err := s.clients.core(r.gv, r.resource, r.list)
		if err != nil {
			return err
		}
		v := versions{
			group: r.gv.Group, resource: r.resource, preferred: []string{r.gv.Version}, client: s.clients.plain,
			optional: r.resource == "servicecidrs", // since Kubernetes 1.33
			open:     func(string) endpoint { return at },
		}
		// Elsewhere an old state is as good as a slow watch. Of namespaces and policies it could open what was closed.
		s.add(v, r.convert, r.table).consistent = r.resource == "namespaces"
	}
	return nil
}

func (s *Source) addCustom(group, resource string, convert converter, t table, preferred ...string) {
	s.add(versions{
		optional: true, group: group, resource: resource, preferred: preferred, client: s.clients.plain,
		open: func(version string) endpoint {
			return s.clients.custom(schema.GroupVersionResource{Group: group, Version: version, Resource: resource})
		},
	}, convert, t).consistent = true
}

func (s *Source) add(v versions, convert converter, t table) *watchFeed {
	name := v.resource
	if v.group != "" {
		name += "." + v.group
	}
	slot := newSlot(s.wake, t)
	s.slots = append(s.slots, slot)
	f := s.feed(name, v, convert)
	s.jobs = append(s.jobs, job{f, slot})
	return f
}

func (s *Source) feed(name string, v versions, convert converter) *watchFeed {
	h := newHealth(name, s.log, s.metrics.failuresOf(name))
	s.metrics.health = append(s.metrics.health, h)
	return &watchFeed{versions: v, convert: convert, health: h, pace: *s.options.pace}
}

// Run implements source.Source. It may be called once. It returns nil when ctx ends: an API server that is away, now
// or later, is waited for.
func (s *Source) Run(ctx context.Context, publish func(*source.Snapshot)) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, j := range s.jobs {
		running.Go(func() { j.feed.run(ctx, j.to) })
	}
	tell := time.NewTicker(tellEvery)
	defer tell.Stop()
	doubt := time.NewTicker(min(s.options.pace.distrust/10, time.Second))
	defer doubt.Stop()
	var last time.Time
	complete := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tell.C:
			if complete && s.options.Policies != nil && s.state.untold() {
				s.options.Policies(s.state.verdicts())
			}
			continue
		case <-doubt.C:
			if !complete || !s.state.distrust(s.distrusted()) {
				continue
			}
		case <-s.wake:
		}
		sleep(ctx, time.Until(last.Add(publishEvery)))
		if ctx.Err() != nil {
			return nil
		}
		if complete = s.update(); !complete {
			continue
		}
		if snapshot := s.state.index.Snapshot(); snapshot != nil {
			last = time.Now()
			publish(snapshot)
		}
	}
}

// update applies what arrived and reports whether everything was read at least once.
func (s *Source) update() bool {
	// Asked first: policies that are said to be new by now are in their inbox.
	distrusted := s.distrusted()
	complete := true
	for _, slot := range s.slots {
		s.state.index.Arrived(slot.apply())
		complete = complete && slot.synced
	}
	s.state.distrust(distrusted)
	s.state.flush()
	return complete
}

// distrusted reports whether the policies that are known may have been outdated for too long to loosen anything by them.
func (s *Source) distrusted() bool { return s.trust.stale() > s.options.pace.distrust }
