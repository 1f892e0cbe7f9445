package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
)

const (
	// searchTimeout bounds one question to the container runtime.
	searchTimeout = 10 * time.Second
	minSearchWait = 500 * time.Millisecond
	maxSearchWait = 30 * time.Second
	maxSearches   = 8
)

// Locator knows what the container runtime runs.
type Locator interface {
	// Locate finds the network namespace of a running pod, by the pod's UID, and the ID of its sandbox. The caller
	// closes the file; it is proved to be the pod's by its addresses before it is used. A pod that does not run is
	// enroll.ErrNotRunning.
	Locate(ctx context.Context, uid string) (netns *os.File, sandbox string, err error)
	// Current are the IDs of the sandboxes that run, by the UIDs of their pods.
	Current(ctx context.Context) (map[string]string, error)
}

// Reporter is told what becomes of pods. Its methods return at once and are called by one goroutine.
type Reporter interface {
	Enrolled(pod *source.Pod)
	NotEnrolled(pod *source.Pod, reason string)
	Unenrolled(pod *source.Pod)
}

func (a *Agent) tellEnrolled(pod *source.Pod) {
	if a.Reporter != nil {
		a.Reporter.Enrolled(pod)
	}
}

func (a *Agent) tellUnenrolled(pod *source.Pod) {
	if a.Reporter != nil {
		a.Reporter.Unenrolled(pod)
	}
}

// search is the attempt to find a pod's namespace.
type search struct {
	uid     string
	running bool
	absent  bool // the runtime says that it does not run: there is nothing to enforce
	next    time.Time
	wait    time.Duration
}

// wantedPods are the pods of this node that the snapshot wants enrolled.
func (a *Agent) wantedPods() map[string]*source.Pod {
	wanted := map[string]*source.Pod{}
	a.undecided = false
	for ref, pod := range a.snapshot.Local() {
		if pod.UID != "" && !a.snapshot.HasNamespace(pod.Namespace) {
			// The list of namespaces is behind that of pods, and this one may ask for its pods to be enrolled.
			a.undecided = true
			if a.byPod[ref] != nil {
				wanted[ref] = pod
			}
			continue
		}
		switch d := enroll.Decide(a.snapshot.Namespace(pod.Namespace), pod, a.Enroll); {
		case d.Enrolled:
			wanted[ref] = pod
		case pod.Redirection == source.RedirectionEnabled && a.byPod[ref] == nil:
			// Left by a predecessor: peers would expect a tunnel there.
			a.tellUnenrolled(pod)
		case d.Refused && a.unenrollable[ref] != d.Reason:
			a.unenrollable[ref] = d.Reason
			a.log.Info("pod not enrolled", "workload", ref, "reason", d.Reason)
			if a.Reporter != nil {
				a.Reporter.NotEnrolled(pod, d.Reason)
			}
		}
	}
	return wanted
}

// enrollPods brings the enrolled pods of this node in line with what is wanted. Where a pod changed its place or
// its identity, what the kernel enforces stays and is adopted, so that it is never open in between, nor when it
// cannot be enrolled again.
func (a *Agent) enrollPods() {
	a.unresolved = false
	for ref, w := range a.byPod {
		switch pod := a.wanted[ref]; {
		case pod == nil && a.Patience > 0 && a.snapshot.LocalPod(ref) == nil:
			// Deleted by force, perhaps, and still running: the runtime tells when its sandbox ends.
			a.abandon(w)
		case pod == nil:
			a.unenroll(w)
		case !w.isPlaceOf(pod):
			a.letGo(w)
		}
	}
	for ref, pod := range a.wanted {
		if a.byPod[ref] != nil || a.hasEnded(pod) {
			continue
		}
		if err := a.place(pod); err != nil {
			a.notEnrolled(pod, err)
		}
	}
	for ref := range a.unenrollable {
		if a.snapshot.LocalPod(ref) == nil {
			delete(a.unenrollable, ref)
		}
	}
	for ref, s := range a.searches {
		if pod := a.wanted[ref]; pod == nil || pod.SandboxUID() != s.uid {
			delete(a.searches, ref)
		}
	}
	for ref, e := range a.ended {
		if pod := a.snapshot.LocalPod(ref); pod == nil || pod.UID != e.uid {
			delete(a.ended, ref)
		}
	}
	a.settle()
}

// ending is a sandbox that its runtime took down, which the API server is yet to hear.
type ending struct {
	uid       string
	addresses []netip.Addr
	at        time.Time
}

// endingLasts is how long a pod is not looked for after its sandbox ended. One that is still listed then, or with
// another address, has a new sandbox, perhaps.
const endingLasts = 5 * time.Second

func (a *Agent) hasEnded(pod *source.Pod) bool {
	e, ended := a.ended[pod.Ref()]
	return ended && e.uid == pod.UID && time.Since(e.at) < endingLasts &&
		(len(pod.Addresses) == 0 || sameAddresses(pod.Addresses, e.addresses))
}

// end is what the runtime says of a sandbox: nothing of the pod runs in it any more.
func (a *Agent) end(w *workload) {
	a.ended[w.pod.Ref()] = ending{w.pod.UID, w.pod.Addresses, time.Now()}
	a.unenroll(w)
}

// abandon gives up a workload whose sandbox may still run: what is enforced stays until the runtime says that it ended,
// or its network namespace is gone.
func (a *Agent) abandon(w *workload) {
	a.lingering[w.id] = w.container
	a.letGo(w)
}

// settle finds out whether all wanted pods are in their place, and if so drops what belongs to none of them.
func (a *Agent) settle() {
	a.unresolved = false
	for ref, pod := range a.wanted {
		s := a.searches[ref]
		if a.byPod[ref] == nil && !a.hasEnded(pod) && (s == nil || !s.absent) {
			a.unresolved = true
		}
	}
	if !a.unresolved {
		a.dropAdopted()
	}
}

// place enrols a pod whose namespace has a path, and has the namespace looked for otherwise.
func (a *Agent) place(pod *source.Pod) error {
	switch {
	case pod.NetnsPath != "":
		netns, err := enroll.OpenNetns(pod.NetnsPath, pod.Addresses)
		if err != nil {
			return err
		}
		return a.enrollPod(pod, pod, netns, "", running)
	case a.Locator == nil:
		return fmt.Errorf("its network namespace is not known: annotate the pod with %s", source.NetnsAnnotation)
	case len(pod.Addresses) > 0:
		a.search(pod)
	}
	return nil // without an address it has not started: its runtime will announce it
}

// search asks for the pod's namespace beside the loop. The answer comes back as an event.
func (a *Agent) search(pod *source.Pod) {
	s := a.searches[pod.Ref()]
	if s == nil || s.uid != pod.SandboxUID() {
		s = &search{uid: pod.SandboxUID(), wait: minSearchWait}
		a.searches[pod.Ref()] = s
	}
	if s.running || time.Now().Before(s.next) {
		return
	}
	s.running = true
	ref := pod.Ref()
	a.tasks.Go(func() {
		select {
		case a.searchers <- struct{}{}:
			defer func() { <-a.searchers }()
		case <-a.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(a.ctx, searchTimeout)
		defer cancel()
		file, sandbox, err := a.Locator.Locate(ctx, s.uid)
		if !a.post(func() { a.found(ref, s, file, sandbox, err) }) && file != nil {
			file.Close()
		}
	})
}

// found enrols a pod whose namespace was looked for, if it is still wanted.
func (a *Agent) found(ref string, s *search, file *os.File, sandbox string, err error) {
	s.running, s.absent = false, errors.Is(err, enroll.ErrNotRunning)
	s.next, s.wait = time.Now().Add(s.wait), min(2*s.wait, maxSearchWait)
	pod := a.wanted[ref]
	if a.searches[ref] != s || pod == nil || pod.SandboxUID() != s.uid || a.byPod[ref] != nil {
		if file != nil {
			file.Close()
		}
		return
	}
	if err == nil {
		err = a.enrollIn(pod, file, sandbox)
	}
	if err != nil && !s.absent {
		a.notEnrolled(pod, err)
		return
	}
	a.settle()
}

func (a *Agent) enrollIn(pod *source.Pod, file *os.File, sandbox string) error {
	netns, err := enroll.NewNetns(file, pod.Addresses)
	if err != nil {
		return err
	}
	return a.enrollPod(pod, pod, netns, sandbox, running)
}

func (a *Agent) notEnrolled(pod *source.Pod, err error) {
	ref := pod.Ref()
	if a.unenrollable[ref] == err.Error() {
		return
	}
	a.unenrollable[ref] = err.Error()
	a.log.Error("pod not enrolled", "workload", ref, "error", err)
	if a.Reporter != nil {
		a.Reporter.NotEnrolled(pod, err.Error())
	}
}

// stage is how far a pod is when it is enrolled.
type stage bool

const (
	starting stage = false // nothing of it runs yet
	running  stage = true
)

// enrollPod makes the pod's policy, listeners and programs stand, in that order: it is enforced before
// anything of it is reachable. The namespace is its own from here on, also when it fails. listed is the pod as the
// snapshot has it.
func (a *Agent) enrollPod(listed, pod *source.Pod, netns *enroll.Netns, container string, s stage) error {
	begin := time.Now()
	id, err := spiffeid.FromSegments(a.TrustDomain, "ns", pod.Namespace, "sa", pod.ServiceAccount)
	if err != nil {
		return errors.Join(fmt.Errorf("identity: %w", err), netns.Close())
	}
	cookie, err := datapath.NetnsCookie(netns.File())
	if err != nil {
		return errors.Join(err, netns.Close())
	}
	if other := a.workloads[cookie]; other != nil {
		netns.Close()
		return fmt.Errorf("its network namespace %s is already that of %s", netns, other.pod.Ref())
	}
	watched, err := a.path.Watched(cookie)
	if err != nil {
		return errors.Join(err, netns.Close())
	}
	w := &workload{id: cookie, listed: listed, pod: pod, identity: id, netns: netns, container: container}
	if err := a.attach(w); err != nil {
		w.close()
		return err
	}
	a.workloads[cookie], a.byPod[pod.Ref()] = w, w
	a.touchWorkload(w)
	delete(a.unenrollable, pod.Ref())
	delete(a.searches, pod.Ref())
	delete(a.ended, pod.Ref())
	delete(a.lingering, cookie)
	delete(a.unclaimed, cookie)
	a.observer.arrived(w, watched || s == starting)
	a.keeper.Use(w.principal())
	a.announce(w)
	a.closePlaintext(w)
	a.metrics.Enrolled(time.Since(begin))
	a.log.Info("pod enrolled", "workload", pod.Ref(), "identity", id.String(), "netns", netns.String(), "cookie", cookie)
	a.logPolicy(w)
	a.tellEnrolled(pod)
	return nil
}

// dropAdopted removes what was left of pods that are no more. While the namespace of a wanted pod is not known,
// any of it may be that pod's protection, and all of it stays. So it does while an object cannot be read, which may
// be the pod or its Namespace, and for a while because what was read may be behind.
func (a *Agent) dropAdopted() {
	if a.unresolved || a.undecided || a.snapshot.Incomplete || len(a.additions) > 0 {
		return
	}
	if a.Self != "" && a.snapshot.LocalPod(a.Self) == nil {
		return
	}
	cookies, err := a.path.Workloads()
	if err != nil {
		a.log.Error("adopted workloads not listed", "error", err)
		return
	}
	for _, cookie := range cookies {
		if _, lingers := a.lingering[cookie]; lingers || a.workloads[cookie] != nil {
			continue
		}
		if _, known := a.unclaimed[cookie]; !known {
			a.unclaimed[cookie] = time.Now()
		}
		if time.Since(a.unclaimed[cookie]) >= a.Patience || a.isGone(cookie) {
			a.detach(cookie)
		}
	}
}

// dropGone is called now and then: it takes away what was waited for.
func (a *Agent) dropGone() {
	for cookie := range a.lingering {
		if a.isGone(cookie) {
			a.detach(cookie)
		}
	}
	if len(a.unclaimed) > 0 {
		a.dropAdopted()
	}
}

func (a *Agent) isGone(cookie uint64) bool {
	gone, err := a.path.Gone(cookie)
	return err == nil && gone
}

func (a *Agent) detach(cookie uint64) {
	a.observer.leaving(cookie)
	if err := a.path.Detach(cookie); err != nil {
		a.log.Error("workload not removed", "cookie", cookie, "error", err)
		return
	}
	delete(a.lingering, cookie)
	delete(a.unclaimed, cookie)
}
