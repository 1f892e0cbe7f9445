package agent

import (
	"context"
	"errors"
	"fmt"
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

// Locator finds the network namespace of a running pod, by the pod's UID. The caller closes the file; it is proved to
// be the pod's by its addresses before it is used.
type Locator interface {
	Netns(ctx context.Context, uid string) (*os.File, error)
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
	next    time.Time
	wait    time.Duration
}

// wantedPods are the pods of this node that the snapshot wants enrolled.
func (a *Agent) wantedPods() map[string]*source.Pod {
	wanted := map[string]*source.Pod{}
	for ref, pod := range a.snapshot.Local() {
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
		a.unresolved = true
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
	for ref, uid := range a.ended {
		if pod := a.snapshot.LocalPod(ref); pod == nil || pod.UID != uid {
			delete(a.ended, ref)
		}
	}
	a.settle()
}

// hasEnded reports whether the runtime took the pod's sandbox down, which the API server is yet to hear.
func (a *Agent) hasEnded(pod *source.Pod) bool {
	uid, ended := a.ended[pod.Ref()]
	return ended && uid == pod.UID
}

// settle finds out whether all wanted pods are in their place, and if so drops what belongs to none of them.
func (a *Agent) settle() {
	for ref, pod := range a.wanted {
		if a.byPod[ref] == nil && !a.hasEnded(pod) {
			a.unresolved = true
			return
		}
	}
	a.unresolved = false
	a.dropAdopted()
}

// place enrols a pod whose namespace has a path, and has the namespace looked for otherwise.
func (a *Agent) place(pod *source.Pod) error {
	switch {
	case pod.NetnsPath != "":
		netns, err := enroll.OpenNetns(pod.NetnsPath, pod.Addresses)
		if err != nil {
			return err
		}
		return a.enrollPod(pod, pod, netns, "")
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
		file, err := a.Locator.Netns(ctx, s.uid)
		if !a.post(func() { a.found(ref, s, file, err) }) && file != nil {
			file.Close()
		}
	})
}

// found enrols a pod whose namespace was looked for, if it is still wanted.
func (a *Agent) found(ref string, s *search, file *os.File, err error) {
	s.running = false
	s.next, s.wait = time.Now().Add(s.wait), min(2*s.wait, maxSearchWait)
	pod := a.wanted[ref]
	if a.searches[ref] != s || pod == nil || pod.SandboxUID() != s.uid || a.byPod[ref] != nil {
		if file != nil {
			file.Close()
		}
		return
	}
	if err == nil {
		err = a.enrollIn(pod, file)
	}
	if err != nil {
		a.notEnrolled(pod, err)
		return
	}
	a.settle()
}

func (a *Agent) enrollIn(pod *source.Pod, file *os.File) error {
	netns, err := enroll.NewNetns(file, pod.Addresses)
	if err != nil {
		return err
	}
	return a.enrollPod(pod, pod, netns, "")
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

// enrollPod makes the pod's policy, listeners and programs stand, in that order: it is enforced before
// anything of it is reachable. The namespace is its own from here on, also when it fails. listed is the pod as the
// snapshot has it.
func (a *Agent) enrollPod(listed, pod *source.Pod, netns *enroll.Netns, container string) error {
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
	a.keeper.Use(id)
	a.announce(w)
	a.closePlaintext(w)
	a.log.Info("pod enrolled", "workload", pod.Ref(), "identity", id.String(), "netns", netns.String(), "cookie", cookie)
	a.logPolicy(w)
	a.tellEnrolled(pod)
	return nil
}

// dropAdopted removes what was left of pods that are no more. While the namespace of a wanted pod is not known,
// any of it may be that pod's protection, and all of it stays. So it does while an object cannot be read, which may
// be the pod or its Namespace.
func (a *Agent) dropAdopted() {
	if a.unresolved || a.snapshot.Incomplete || len(a.additions) > 0 {
		return
	}
	cookies, err := a.path.Workloads()
	if err != nil {
		a.log.Error("adopted workloads not listed", "error", err)
		return
	}
	for _, cookie := range cookies {
		if a.workloads[cookie] != nil {
			continue
		}
		if err := a.path.Detach(cookie); err != nil {
			a.log.Error("adopted workload not removed", "cookie", cookie, "error", err)
		}
	}
}
