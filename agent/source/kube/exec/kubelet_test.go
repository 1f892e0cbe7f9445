package exec

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// program stands for the container: it returns an exit code.
type program func(path string, args []string, stdout, stderr io.Writer) int

// kubelet is the part of a kubelet that an exec needs: SPDY, as the API server speaks it to kubelets.
type kubelet struct {
	*httptest.Server
	mu  sync.Mutex
	run program
	wg  sync.WaitGroup
}

func startKubelet(t *testing.T) *kubelet {
	t.Helper()
	k := &kubelet{}
	k.Server = httptest.NewTLSServer(http.HandlerFunc(k.exec))
	t.Cleanup(func() {
		k.Close()
		k.wg.Wait()
	})
	return k
}

func (k *kubelet) does(p program) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.run = p
}

func (k *kubelet) port(t *testing.T) int {
	t.Helper()
	_, port, err := net.SplitHostPort(k.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (k *kubelet) exec(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/exec") {
		http.NotFound(w, r)
		return
	}
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 3)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		streams <- s
		return nil
	})
	if conn == nil {
		return
	}
	k.mu.Lock()
	run := k.run
	k.mu.Unlock()
	k.wg.Go(func() {
		defer conn.Close()
		by := map[string]httpstream.Stream{}
		for range 3 {
			select {
			case s := <-streams:
				by[s.Headers().Get("streamType")] = s
			case <-conn.CloseChan():
				return
			}
		}
		code := run(r.URL.Path, r.URL.Query()["command"], by["stdout"], by["stderr"])
		status := metav1.Status{Status: metav1.StatusSuccess}
		if code != 0 {
			status = metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Message: "command terminated",
				Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: strconv.Itoa(code)}}}}
		}
		_ = json.NewEncoder(by["error"]).Encode(status)
		for _, name := range []string{"stdout", "stderr", "error"} {
			_ = by[name].Close()
		}
		select {
		case <-conn.CloseChan():
		case <-time.After(5 * time.Second):
		}
	})
}
