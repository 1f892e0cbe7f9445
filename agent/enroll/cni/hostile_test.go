package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func dialRaw(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c
}

func encoded(t *testing.T, change func(*Request)) []byte {
	t.Helper()
	r := addRequest()
	r.Version = Version
	if change != nil {
		change(r)
	}
	data, err := json.Marshal(r)
	must(t, err)
	return data
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// TestHostileMessages: what is not a request is answered with an error, reaches no handler, and leaves no
// descriptor open.
func TestHostileMessages(t *testing.T) {
	path := socketPath(t)
	h := &handler{}
	serveOn(t, path, h)
	netns := openNetns(t)
	before := openFiles(t)
	for name, tc := range map[string]struct {
		data  []byte
		files int
		code  uint
	}{
		"oversized":            {bytes.Repeat([]byte(" "), MaxMessage+1), 1, CodeInvalidRequest},
		"twice oversized":      {bytes.Repeat([]byte("x"), 2*MaxMessage), 1, CodeInvalidRequest},
		"no JSON":              {[]byte("GET / HTTP/1.1\r\n"), 1, CodeInvalidRequest},
		"JSON of another kind": {[]byte(`[1,2,3]`), 1, CodeInvalidRequest},
		"deep":                 {bytes.Repeat([]byte("["), 60_000), 1, CodeInvalidRequest},
		"empty object":         {[]byte(`{}`), 1, CodeIncompatible},
		"another version":      {encoded(t, func(r *Request) { r.Version = 2 }), 1, CodeIncompatible},
		"another command":      {encoded(t, func(r *Request) { r.Command = "VERSION" }), 1, CodeInvalidRequest},
		"no pod":               {encoded(t, func(r *Request) { r.PodName = "" }), 1, CodeInvalidRequest},
		"no container":         {encoded(t, func(r *Request) { r.ContainerID = "" }), 1, CodeInvalidRequest},
		"a path for a name":    {encoded(t, func(r *Request) { r.PodName = "../../etc/passwd" }), 1, CodeInvalidRequest},
		"a line in a name":     {encoded(t, func(r *Request) { r.PodName = "a\nlevel=INFO" }), 1, CodeInvalidRequest},
		"a long name":          {encoded(t, func(r *Request) { r.PodName = strings.Repeat("a", 300) }), 1, CodeInvalidRequest},
		"negative timeout":     {encoded(t, func(r *Request) { r.Timeout = -1 }), 1, CodeInvalidRequest},
		"more of an ADD":       {encoded(t, func(r *Request) { r.More = true }), 1, CodeInvalidRequest},
		"no descriptor":        {encoded(t, nil), 0, CodeInvalidRequest},
		"two descriptors":      {encoded(t, nil), 2, CodeInvalidRequest},
		"a hundred":            {encoded(t, nil), 100, CodeInvalidRequest},
		"DEL with one":         {encoded(t, func(r *Request) { r.Command = Delete }), 1, CodeInvalidRequest},
	} {
		c := dialRaw(t, path)
		var rights []byte
		if tc.files > 0 {
			fds := make([]int, tc.files)
			for i := range fds {
				fds[i] = int(netns.Fd())
			}
			rights = unix.UnixRights(fds...)
		}
		_, _, err := c.WriteMsgUnix(tc.data, rights, nil)
		must(t, err)
		data, _, err := receive(c)
		must(t, err)
		answer, err := decodeResponse(data)
		if err != nil || answer.Enrolled || answer.Error == nil || answer.Error.Code != tc.code {
			t.Errorf("%s: answer %s, %v", name, data, err)
		}
		must(t, c.Close())
	}
	if h.last() != nil {
		t.Errorf("reached the handler: %+v", h.last())
	}
	deadline := time.Now().Add(5 * time.Second)
	for openFiles(t) > before && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d open files, before %d", after, before)
	}
}

// TestAnyDescriptorReachesTheHandler: what it is, the handler has to prove; a pipe must not block anyone.
func TestAnyDescriptorReachesTheHandler(t *testing.T) {
	path := socketPath(t)
	h := &handler{add: func(_ context.Context, _ *Request, netns *os.File) (Response, error) {
		raw, err := netns.SyscallConn()
		if err != nil {
			return Response{}, err
		}
		var kindErr error
		err = raw.Control(func(fd uintptr) {
			_, kindErr = unix.IoctlRetInt(int(fd), 0xb703) // NS_GET_NSTYPE
		})
		if err = errors.Join(err, kindErr); err != nil {
			return Response{}, fmt.Errorf("no namespace: %w", err)
		}
		return Response{Enrolled: true}, nil
	}}
	serveOn(t, path, h)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	answer, err := Call(t.Context(), path, addRequest(), r)
	if err != nil || answer.Error == nil || answer.Enrolled {
		t.Errorf("a pipe: %+v, %v", answer, err)
	}
	if answer, err = Call(t.Context(), path, addRequest(), openNetns(t)); err != nil || !answer.Enrolled {
		t.Errorf("a namespace: %+v, %v", answer, err)
	}
}

// TestSilentConnections: a thousand connections that say nothing cost others a wait, not their answer.
func TestSilentConnections(t *testing.T) {
	path := socketPath(t)
	serveOn(t, path, &handler{})
	before := openFiles(t)
	var silent []*net.UnixConn
	for range 1000 {
		silent = append(silent, dialRaw(t, path))
	}
	began := time.Now()
	answer, err := Call(t.Context(), path, addRequest(), openNetns(t))
	if err != nil || !answer.Enrolled {
		t.Fatalf("got %+v, %v", answer, err)
	}
	t.Logf("answered behind 1000 silent connections after %s", time.Since(began))
	for _, c := range silent {
		_ = c.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for openFiles(t) > before+4 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if after := openFiles(t); after > before+4 {
		t.Errorf("%d open files, before %d", after, before)
	}
}

// TestManyAtOnce: three hundred pods at a time, of which each takes a while, and a DEL that does not wait for them.
func TestManyAtOnce(t *testing.T) {
	path := socketPath(t)
	var mu sync.Mutex
	var working, most int
	h := &handler{add: func(context.Context, *Request, *os.File) (Response, error) {
		mu.Lock()
		working++
		most = max(most, working)
		mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		mu.Lock()
		working--
		mu.Unlock()
		return Response{Enrolled: true}, nil
	}}
	serveOn(t, path, h)
	netns := openNetns(t)
	var all sync.WaitGroup
	for range 300 {
		all.Go(func() {
			if answer, err := Call(t.Context(), path, addRequest(), netns); err != nil || !answer.Enrolled {
				t.Errorf("got %+v, %v", answer, err)
			}
		})
	}
	if _, err := Call(t.Context(), path, &Request{Command: Delete, ContainerID: "c"}, nil); err != nil {
		t.Errorf("DEL: %v", err)
	}
	all.Wait()
	mu.Lock()
	defer mu.Unlock()
	if most > maxWorking {
		t.Errorf("%d at a time, at most %d", most, maxWorking)
	}
}

// TestOtherUsers: neither does the server listen to another user, nor the client believe one.
func TestOtherUsers(t *testing.T) {
	if os.Getenv("CULVERT_TEST_DIAL") != "" {
		c, err := net.Dial(network, os.Getenv("CULVERT_TEST_DIAL"))
		if err != nil {
			fmt.Println("refused:", err)
			return
		}
		_, _ = c.Write([]byte(`{"version":1,"command":"STATUS"}`))
		n, err := c.Read(make([]byte, 100))
		fmt.Println("read:", n, err)
		return
	}
	dir, err := os.MkdirTemp("", "culvert-cni-test")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	path := dir + "/cni.sock"
	h := &handler{}
	serveOn(t, path, h)
	// The test itself, run as another user; its binary is where that user cannot go.
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(dir+"/test", self, 0o755))
	dial := func() string {
		cmd := exec.Command(dir+"/test", "-test.run", "^TestOtherUsers$")
		cmd.Env, cmd.Dir = append(os.Environ(), "CULVERT_TEST_DIAL="+path), "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := dial(); !strings.Contains(out, "permission denied") {
		t.Errorf("mode of the socket: %s", out)
	}
	must(t, os.Chmod(path, 0o666))
	if out := dial(); !strings.Contains(out, "read: 0") || h.last() != nil {
		t.Errorf("peer's user: %s, asked %v", out, h.last())
	}
}

// FuzzDecode: what decodes is within its bounds, and encodes to something that decodes to the same.
func FuzzDecode(f *testing.F) {
	r := addRequest()
	r.Version = Version
	seed, err := json.Marshal(r)
	must(f, err)
	f.Add(seed)
	f.Add([]byte(`{"version":1,"command":"GC","valid":[{"containerID":"a","ifName":"b"}],"more":true}`))
	f.Add([]byte(`{"version":1,"command":"DEL","containerID":"x","addresses":["fe80::1%eth0"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRequest(data)
		if err != nil {
			return
		}
		if len(r.PodName) > maxName || len(r.Addresses) > maxAddresses || strings.ContainsAny(r.PodName, "/\n") {
			t.Errorf("out of bounds: %+v", r)
		}
		r.More = false
		messages, err := r.encode()
		if err != nil {
			return // more attachments with long names than fit
		}
		if _, err := decodeRequest(messages[0]); err != nil {
			t.Errorf("%s: %v", messages[0], err)
		}
		_, _ = decodeResponse(data)
	})
}
