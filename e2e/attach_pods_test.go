package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
	"github.com/culvert-mesh/culvert/agent/source"
)

func TestPodIsCoveredWhenItsRuntimeIsAnswered(t *testing.T) {
	a := startAttaching(t)
	eventually(t, "the socket answers", func() bool {
		answer, err := a.call(time.Second, cni.Status, "", "", nil)
		return err == nil && answer.Error != nil // not ready: there was no snapshot
	})
	// The runtime hears of the pod before the source does.
	go func() {
		time.Sleep(300 * time.Millisecond)
		a.list("1") // its status has no address yet
	}()
	a.mustEnroll("1", "c1", a.pod)
	a.mustEnroll("1", "c1", a.pod) // asked again
	if answer, err := a.call(time.Second, cni.Status, "", "", nil); err != nil || answer.Error != nil {
		t.Errorf("STATUS: %+v, %v", answer, err)
	}
	a.list("1", a.pod.IP4, a.pod.IP6)
	a.mustRefuse(a.pod)
	if got := a.told.of("n/pod"); got != "enrolled" {
		t.Errorf("reported: %s", got)
	}
}

func TestSandboxThatIsReplacedIsEnrolledAnew(t *testing.T) {
	a := startAttaching(t)
	a.list("1")
	a.mustEnroll("1", "c1", a.pod)
	a.list("1", a.pod.IP4, a.pod.IP6)
	if answer, err := a.call(time.Second, cni.Delete, "1", "c1", nil); err != nil || answer.Error != nil {
		t.Fatalf("DEL: %+v, %v", answer, err)
	}
	if err := a.open(a.pod); err != nil {
		t.Errorf("the old sandbox is still enforced: %v", err)
	}
	a.list("1", a.pod.IP4, a.pod.IP6) // the old address is listed for a while, and is no reason to look for it
	a.mustEnroll("1", "c2", a.twin)
	a.list("1", a.twin.IP4, a.twin.IP6)
	a.mustRefuse(a.twin)
	// The end of the old one, told late, is not that of the new one.
	if _, err := a.call(time.Second, cni.Delete, "1", "c1", nil); err != nil {
		t.Fatal(err)
	}
	a.mustRefuse(a.twin)
}

func TestRunningPodIsFoundThroughItsRuntime(t *testing.T) {
	a := startAttaching(t)
	a.list("1")
	a.mustEnroll("1", "c1", a.pod)
	a.runtime.set("1", "c1", a.pod)
	a.restart()
	a.list("1", a.pod.IP4, a.pod.IP6)
	eventually(t, "the pod is enrolled", func() bool { return a.told.of("n/pod") == "enrolled" })
	a.mustRefuse(a.pod)
	// The end of an earlier sandbox, which the runtime tells late, is not that of the one that runs.
	if _, err := a.call(time.Second, cni.Delete, "1", "c0", nil); err != nil {
		t.Fatal(err)
	}
	a.mustRefuse(a.pod)

	a.index.SetNamespace(&source.Namespace{Name: "n"})
	a.publish()
	eventually(t, "the pod is let go", func() bool { return a.told.of("n/pod") == "unenrolled" })
	if err := a.open(a.pod); err != nil {
		t.Errorf("a pod that nobody wants enrolled any more: %v", err)
	}
}

func TestNamespaceThatIsNotThePodsIsNotEnrolled(t *testing.T) {
	a := startAttaching(t)
	a.list("1")
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	answer, err := cni.Call(ctx, a.socket, &cni.Request{Command: cni.Add, PodNamespace: "n", PodName: "pod", PodUID: "1",
		ContainerID: "c", IfName: "eth0", Addresses: []netip.Addr{a.pod.IP4}}, own)
	if err != nil || answer.Error == nil || answer.Enrolled {
		t.Fatalf("ADD of the agent's own namespace: %+v, %v", answer, err)
	}
	a.runtime.set("1", "c1", a.twin)
	a.list("1", a.pod.IP4)
	eventually(t, "it is said why", func() bool {
		s := a.told.of("n/pod")
		return len(s) > 13 && s[:13] == "not enrolled:"
	})
	a.mustEnroll("1", "c1", a.pod)
}

func TestPodThatTheSourceDoesNotKnowIsNotLetThrough(t *testing.T) {
	a := startAttaching(t)
	a.publish()
	answer, err := a.call(500*time.Millisecond, cni.Add, "1", "c1", a.pod)
	if err == nil && (answer.Error == nil || answer.Enrolled) {
		t.Fatalf("ADD: %+v", answer)
	}
	// Nor one whose namespace is not known yet, which may ask for it.
	a.index.DeleteNamespace("n")
	a.list("1")
	answer, err = a.call(500*time.Millisecond, cni.Add, "1", "c1", a.pod)
	if err == nil && (answer.Error == nil || answer.Enrolled) {
		t.Fatalf("ADD: %+v", answer)
	}
	a.index.SetNamespace(&source.Namespace{Name: "n"})
	a.publish()
	answer, err = a.call(5*time.Second, cni.Add, "1", "c1", a.pod)
	if err != nil || answer.Error != nil || answer.Enrolled {
		t.Fatalf("ADD where nobody asks for it: %+v, %v", answer, err)
	}
}

func TestNoPodWaitsForAnAgentThatIsBeingUninstalled(t *testing.T) {
	a := startAttaching(t)
	a.publish()
	go func() {
		time.Sleep(300 * time.Millisecond)
		close(a.retiring)
	}()
	for range 2 { // one that waits already, and one that comes later
		answer, err := a.call(10*time.Second, cni.Add, "1", "c1", a.pod)
		if err != nil || answer.Error != nil || answer.Enrolled {
			t.Fatalf("ADD: %+v, %v", answer, err)
		}
	}
}

// A pod that is no object any more, deleted by force perhaps, may still run.
func TestPodThatIsNoObjectAnyMoreStaysEnforcedUntilItsSandboxEnds(t *testing.T) {
	a := startAttaching(t)
	a.list("1")
	a.mustEnroll("1", "c1", a.pod)
	a.index.DeletePod("n", "pod")
	a.publish()
	time.Sleep(time.Second)
	a.mustRefuse(a.pod)
	if _, err := a.call(time.Second, cni.Delete, "1", "c1", nil); err != nil {
		t.Fatal(err)
	}
	if err := a.open(a.pod); err != nil {
		t.Errorf("its sandbox has ended: %v", err)
	}
}

// A sandbox whose start nobody told of is found when the pod is still listed some time after its last one ended.
func TestSandboxThatWasNotToldOfIsFound(t *testing.T) {
	a := startAttaching(t)
	a.list("1")
	a.mustEnroll("1", "c1", a.pod)
	a.list("1", a.pod.IP4, a.pod.IP6)
	if _, err := a.call(time.Second, cni.Delete, "1", "c1", nil); err != nil {
		t.Fatal(err)
	}
	a.runtime.set("1", "c2", a.twin)
	a.list("1", a.twin.IP4, a.twin.IP6)
	eventually(t, "the new sandbox is enforced", func() bool { return errors.Is(a.open(a.twin), unix.ECONNREFUSED) })
}

// After a restart, lists may be behind one another: what was enforced stays.
func TestListsThatAreBehindOpenNothing(t *testing.T) {
	for name, begin := range map[string]func(a *attaching){
		"of namespaces": func(a *attaching) {
			a.index.DeleteNamespace("n")
			a.list("1", a.pod.IP4, a.pod.IP6)
		},
		"of pods": func(a *attaching) {
			a.index.SetPod(&source.Pod{Namespace: "n", Name: "other", UID: "2", Node: "elsewhere"})
			a.publish()
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := startAttaching(t)
			a.list("1")
			a.mustEnroll("1", "c1", a.pod)
			a.runtime.set("1", "c1", a.pod)
			a.restart()
			begin(a)
			for range 4 {
				time.Sleep(300 * time.Millisecond)
				a.mustRefuse(a.pod)
			}
			a.ambient()
			a.list("1", a.pod.IP4, a.pod.IP6)
			eventually(t, "the pod is enrolled", func() bool { return a.told.of("n/pod") == "enrolled" })
			a.mustRefuse(a.pod)
		})
	}
}
