package kube

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// ConfigMapName is the ConfigMap with the roots, in every namespace.
const ConfigMapName = "culvert-ca-root-cert"

// ClusterRoleName is what the ConfigMaps belong to: whoever uninstalls Culvert deletes it, and they go with it.
const ClusterRoleName = "culvert-ca"

const (
	distributors    = 4
	writesPerSecond = 50
	writeBurst      = 100
	minWriteRetry   = 250 * time.Millisecond
	maxWriteRetry   = time.Minute
	ownerKnown      = 30 * time.Second
)

// Distributor keeps the bundle in a ConfigMap of every namespace. It runs in the leader.
type Distributor struct {
	client    kubernetes.Interface
	namespace string // the CA's own
	metrics   *Metrics
	log       *slog.Logger
	owner     owner
	changed   chan struct{} // holds one element if the bundle is another

	mu     sync.Mutex
	wanted string  // the bundle; empty while this replica does not know it
	copies *copies // nil while this replica does not lead
}

// NewDistributor returns a Distributor for the CA in namespace.
func NewDistributor(c *Client, namespace string, m *Metrics, log *slog.Logger) *Distributor {
	return &Distributor{client: c.api, namespace: namespace, metrics: m, log: log, owner: owner{client: c.api},
		changed: make(chan struct{}, 1)}
}

// Publish says what is to be distributed.
func (d *Distributor) Publish(bundle string) {
	d.mu.Lock()
	same := d.wanted == bundle
	d.wanted = bundle
	d.mu.Unlock()
	if same {
		return
	}
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

func (d *Distributor) bundle() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wanted
}

// Published reports whether the ConfigMap in the CA's own namespace, from which agents read, holds that bundle. Only the
// leader knows.
func (d *Distributor) Published(bundle string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bundle != "" && d.copies != nil && d.copies.holds(d.namespace, bundle)
}

// Run distributes until ctx ends.
func (d *Distributor) Run(ctx context.Context) {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](minWriteRetry, maxWriteRetry))
	known := newCopies(queue.Add)
	d.set(known)
	defer d.set(nil)
	defer d.Publish("") // who leads again has to look again
	var tasks sync.WaitGroup
	tasks.Go(func() { watchNamespaces(ctx, d.client, known) })
	tasks.Go(func() { watchCopies(ctx, d.client, known) })
	limit := rate.NewLimiter(writesPerSecond, writeBurst)
	for range distributors {
		tasks.Go(func() { d.work(ctx, queue, known, limit) })
	}
	defer tasks.Wait()
	defer queue.ShutDown()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		known.all(queue.Add)
		d.metrics.setNamespaces(known.count(d.bundle()))
		select {
		case <-ctx.Done():
			d.metrics.setNamespaces(0, 0)
			return
		case <-d.changed:
		case <-tick.C:
		}
	}
}

func (d *Distributor) set(c *copies) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.copies = c
}

func (d *Distributor) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], known *copies, limit *rate.Limiter) {
	for {
		namespace, over := queue.Get()
		if over {
			return
		}
		switch err := d.repair(ctx, namespace, known, limit); {
		case err == nil:
			queue.Forget(namespace)
		case ctx.Err() == nil:
			d.metrics.publishFailures.Inc()
			if queue.NumRequeues(namespace) == 0 { // once for each series of failures
				d.log.Error("bundle not written; trying again", "configmap", namespace+"/"+ConfigMapName, "error", err)
			}
			queue.AddRateLimited(namespace)
		}
		queue.Done(namespace)
		d.metrics.setNamespaces(known.count(d.bundle()))
	}
}

// repair makes the ConfigMap of one namespace hold the bundle. Other keys in it are left alone.
func (d *Distributor) repair(ctx context.Context, namespace string, known *copies, limit *rate.Limiter) error {
	bundle := d.bundle()
	now, wanted := known.wants(namespace, bundle)
	if bundle == "" || !wanted {
		return nil
	}
	if err := limit.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := d.write(ctx, namespace, bundle, now)
	switch {
	case err == nil:
		d.metrics.published.Inc()
		if namespace == d.namespace {
			d.log.Info("bundle published", "configmap", namespace+"/"+ConfigMapName)
		}
		return nil
	case apierrors.HasStatusCause(err, core.NamespaceTerminatingCause), !now.exists && apierrors.IsNotFound(err):
		return nil // the namespace is on its way out, or gone
	case !now.exists && apierrors.IsAlreadyExists(err), now.exists && (apierrors.IsNotFound(err) || apierrors.IsConflict(err)):
		return nil // the watch will tell, and bring it back here
	}
	return fmt.Errorf("ConfigMap %s/%s (create, patch configmaps): %w", namespace, ConfigMapName, err)
}

// write makes a ConfigMap, or alters the version that is known: one who leads no more and has not noticed does not undo
// what the next has written.
func (d *Distributor) write(ctx context.Context, namespace, bundle string, now copied) error {
	maps := d.client.CoreV1().ConfigMaps(namespace)
	if now.exists {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]string{"resourceVersion": now.version},
			"data": map[string]string{ca.RootsName: bundle}})
		if err != nil {
			return err
		}
		_, err = maps.Patch(ctx, ConfigMapName, types.MergePatchType, patch, meta.PatchOptions{})
		return err
	}
	_, err := maps.Create(ctx, &core.ConfigMap{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: ConfigMapName, Labels: map[string]string{managedBy: "culvert"},
			OwnerReferences: d.owner.references(ctx)},
		Data: map[string]string{ca.RootsName: bundle},
	}, meta.CreateOptions{})
	return err
}

// owner reads the ClusterRole that the ConfigMaps belong to. It is looked at again: one that was deleted and made anew
// has another UID, and what belongs to the old one is collected.
type owner struct {
	client kubernetes.Interface

	mu   sync.Mutex
	read time.Time
	refs []meta.OwnerReference
}

func (o *owner) references(ctx context.Context) []meta.OwnerReference {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.read) < ownerKnown {
		return o.refs
	}
	o.read, o.refs = time.Now(), nil
	if role, err := o.client.RbacV1().ClusterRoles().Get(ctx, ClusterRoleName, meta.GetOptions{}); err == nil {
		o.refs = []meta.OwnerReference{{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole", Name: role.Name, UID: role.UID}}
	}
	return o.refs
}

func sum(bundle string) [sha256.Size]byte { return sha256.Sum256([]byte(bundle)) }
