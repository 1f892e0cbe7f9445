package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/enroll/cni"
	"github.com/culvert-mesh/culvert/agent/source"
)

// addition is a pod that its runtime is starting. Nothing of the pod runs before it is answered.
type addition struct {
	request *cni.Request
	netns   *os.File
	answer  chan cni.Response // takes one
	svid    <-chan struct{}   // set before the answer: closed when the pod's SVID is there; nil: nothing to wait for
}

func (x *addition) ref() string { return x.request.PodNamespace + "/" + x.request.PodName }

func (x *addition) reply(r cni.Response) {
	x.netns.Close()
	x.answer <- r
}

// attachments answers the CNI plugin. Its methods are called by the goroutines of the socket's server; all they do is
// ask the loop.
type attachments struct{ agent *Agent }

var _ cni.Handler = attachments{}

// Add returns when the pod is enforced and its listeners stand, or when it is known that nobody wants it enrolled.
func (h attachments) Add(ctx context.Context, r *cni.Request, netns *os.File) (cni.Response, error) {
	if netns == nil {
		return cni.Response{}, errors.New("pod's network namespace is missing from the request")
	}
	fd, err := unix.FcntlInt(netns.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return cni.Response{}, fmt.Errorf("network namespace: %w", err)
	}
	x := &addition{request: r, netns: os.NewFile(uintptr(fd), r.NetnsPath), answer: make(chan cni.Response, 1)}
	if !h.agent.post(func() { h.agent.add(x) }) {
		x.netns.Close()
		return cni.Response{}, unavailable("agent is ending")
	}
	select {
	case answer := <-x.answer:
		x.awaitSVID(ctx)
		return answer, nil
	case <-ctx.Done():
		h.agent.post(func() { h.agent.giveUp(x) })
		return cni.Response{}, fmt.Errorf("pod %s is not known from the API server yet: %w", x.ref(), ctx.Err())
	}
}

// awaitSVID lets a pod start with an SVID, if there is one soon: its first connection may be its first act.
func (x *addition) awaitSVID(ctx context.Context) {
	if x.svid == nil {
		return
	}
	patience := time.NewTimer(svidPatience)
	defer patience.Stop()
	select {
	case <-x.svid:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// Check fails when a pod that is to be enforced is not.
func (h attachments) Check(ctx context.Context, r *cni.Request, netns *os.File) error {
	if netns == nil {
		return errors.New("pod's network namespace is missing from the request")
	}
	cookie, err := datapath.NetnsCookie(netns)
	if err != nil {
		return err
	}
	return h.ask(ctx, func(a *Agent) error {
		ref := r.PodNamespace + "/" + r.PodName
		if a.wanted[ref] == nil {
			return nil
		}
		if w := a.byPod[ref]; w == nil || w.id != cookie {
			return fmt.Errorf("pod %s is to be enrolled and is not: %s", ref, a.unenrollable[ref])
		}
		return nil
	})
}

// Delete forgets a pod whose sandbox the runtime takes down.
func (h attachments) Delete(ctx context.Context, r *cni.Request) error {
	return h.ask(ctx, func(a *Agent) error {
		a.endLingering(func(sandbox string) bool { return sandbox == r.ContainerID })
		// By the sandbox alone: the runtime may tell the end of an earlier one of the same pod at any time.
		if w := a.byPod[r.PodNamespace+"/"+r.PodName]; w != nil && w.container != "" && w.container == r.ContainerID {
			a.end(w)
		}
		return nil
	})
}

// GC forgets pods whose sandboxes the runtime does not know any more.
func (h attachments) GC(ctx context.Context, r *cni.Request) error {
	return h.ask(ctx, func(a *Agent) error {
		gone := func(sandbox string) bool {
			return !slices.ContainsFunc(r.Valid, func(v cni.Attachment) bool { return v.ContainerID == sandbox })
		}
		a.endLingering(gone)
		for _, w := range a.byPod {
			if w.container != "" && gone(w.container) {
				a.end(w)
			}
		}
		return nil
	})
}

// endLingering detaches what was left of pods that are no object any more.
func (a *Agent) endLingering(ended func(sandbox string) bool) {
	for cookie, sandbox := range a.lingering {
		if sandbox != "" && ended(sandbox) {
			a.detach(cookie)
		}
	}
}

// Status fails until pods can be enrolled.
func (h attachments) Status(ctx context.Context) error {
	return h.ask(ctx, func(a *Agent) error { return nil })
}

// unavailable is the answer of an agent that cannot tell: to the plugin it is as if there were none.
func unavailable(why string) error {
	return &cni.Error{Code: cni.CodeUnavailable, Msg: why, Retry: true}
}

// ask runs a question on the loop.
func (h attachments) ask(ctx context.Context, question func(*Agent) error) error {
	answer := make(chan error, 1)
	if !h.agent.post(func() {
		if h.agent.snapshot == nil {
			answer <- unavailable("agent has not read the cluster's state yet")
			return
		}
		answer <- question(h.agent)
	}) {
		return unavailable("agent is ending")
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// add answers an addition now, or keeps it until the pod is known: the runtime may hear of it first.
func (a *Agent) add(x *addition) {
	if !a.tryAdd(x) {
		a.additions[x] = struct{}{}
	}
}

func (a *Agent) giveUp(x *addition) {
	if _, waits := a.additions[x]; waits {
		delete(a.additions, x)
		x.netns.Close()
	}
}

// followRetirement lets every pod start from the moment on at which the agent is about to go for good.
func (a *Agent) followRetirement(ctx context.Context) error {
	select {
	case <-a.Retiring:
		a.post(func() {
			a.retiring = true
			a.retryAdditions()
		})
	case <-ctx.Done():
	}
	return nil
}

func (a *Agent) retryAdditions() {
	for x := range a.additions {
		if a.tryAdd(x) {
			delete(a.additions, x)
		}
	}
}

// tryAdd reports whether it answered.
func (a *Agent) tryAdd(x *addition) bool {
	if a.retiring {
		x.reply(cni.Response{Reason: "Culvert is being uninstalled"})
		return true
	}
	if a.snapshot == nil {
		return false
	}
	listed := a.snapshot.LocalPod(x.ref())
	if listed == nil || x.request.PodUID != "" && listed.SandboxUID() != x.request.PodUID {
		return false
	}
	if !a.snapshot.HasNamespace(listed.Namespace) {
		return false // it may ask for its pods to be enrolled
	}
	if d := enroll.Decide(a.snapshot.Namespace(listed.Namespace), listed, a.Enroll); !d.Enrolled {
		x.reply(cni.Response{Reason: d.Reason})
		return true
	}
	addresses := x.request.Addresses
	if len(addresses) == 0 {
		addresses = listed.Addresses
	}
	if err := a.addPod(x, listed, at(listed, addresses)); err != nil {
		a.notEnrolled(listed, err)
		x.answer <- cni.Response{Error: &cni.Error{Msg: "pod " + x.ref() + " not enrolled", Details: err.Error(), Retry: true}}
		return true
	}
	if w := a.byPod[x.ref()]; w != nil {
		x.svid = a.keeper.Ready(w.identity)
	}
	x.answer <- cni.Response{Enrolled: true}
	return true
}

func (a *Agent) addPod(x *addition, listed, pod *source.Pod) error {
	netns, err := enroll.NewNetns(x.netns, pod.Addresses)
	if err != nil {
		return err
	}
	if w := a.byPod[x.ref()]; w != nil {
		cookie, err := datapath.NetnsCookie(netns.File())
		if err != nil {
			return errors.Join(err, netns.Close())
		}
		if cookie == w.id && sameAddresses(pod.Addresses, w.pod.Addresses) {
			w.container = x.request.ContainerID
			return netns.Close() // asked again, or found before the runtime asked
		}
		if a.Patience > 0 && cookie != w.id {
			a.abandon(w) // a sandbox before this one, whose end is yet to be told
		} else {
			a.letGo(w)
		}
	}
	return a.enrollPod(listed, pod, netns, x.request.ContainerID, starting)
}

func listenCNI(path string) (*cni.Listener, error) {
	if path == "" {
		return nil, nil
	}
	l, err := cni.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("CNI socket: %w", err)
	}
	return l, nil
}

func closeCNI(l *cni.Listener) error {
	if l == nil {
		return nil
	}
	return l.Close()
}
