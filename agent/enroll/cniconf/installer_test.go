package cniconf

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tolerance is how long a repair may take on a machine that is busy with other tests. It takes some
// milliseconds, mostly for syncing.
const tolerance = time.Second

// node is the folders of a node.
type node struct {
	t         *testing.T
	conf, bin string
	plugin    string
}

func newNode(t *testing.T) *node {
	t.Helper()
	root := t.TempDir()
	n := &node{t: t, conf: filepath.Join(root, "net.d"), bin: filepath.Join(root, "bin"), plugin: filepath.Join(root, "culvert-cni")}
	must(t, os.Mkdir(n.conf, 0o755))
	must(t, os.Mkdir(n.bin, 0o755))
	must(t, os.WriteFile(n.plugin, bytes.Repeat([]byte("plugin"), 100_000), 0o600))
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) installer() *Installer {
	return &Installer{ConfDir: n.conf, BinDir: n.bin, Plugin: n.plugin, Settle: -1, Logger: slog.New(slog.DiscardHandler),
		Config: Config{Socket: "/run/culvert/cni.sock", Timeout: 30 * time.Second}}
}

// run runs an installer until the test ends, or stop is called.
func (n *node) run(i *Installer) (stop func()) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				n.t.Errorf("Run: %v", err)
			}
		})
	}
	n.t.Cleanup(stop)
	return stop
}

func (n *node) write(name, text string) {
	n.t.Helper()
	must(n.t, os.WriteFile(filepath.Join(n.conf, name), []byte(text), 0o644))
}

// replace writes as careful programs do.
func (n *node) replace(name, text string) {
	n.t.Helper()
	n.write(name+".new", text)
	must(n.t, os.Rename(filepath.Join(n.conf, name+".new"), filepath.Join(n.conf, name)))
}

func (n *node) read(name string) string {
	text, err := os.ReadFile(filepath.Join(n.conf, name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// soon waits until the condition holds, and returns how long that took.
func (n *node) soon(what string, condition func() bool) time.Duration {
	n.t.Helper()
	for begin := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		took := time.Since(begin)
		if condition() {
			return took
		}
		if took > 5*time.Second {
			n.t.Fatalf("%s: not within 5s; the folder has %v", what, n.names())
		}
	}
}

func (n *node) names() []string {
	entries, err := os.ReadDir(n.conf)
	must(n.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (n *node) chained(name string) bool {
	content, err := n.installer().Config.entry()
	must(n.t, err)
	l, err := parseList([]byte(n.read(name)))
	return err == nil && l.chained(content)
}

func (n *node) installed(i *Installer) {
	n.t.Helper()
	n.soon("installed", func() bool { ok, _ := i.Installed(); return ok })
}

func TestInstallAndUninstall(t *testing.T) {
	n := newNode(t)
	path := filepath.Join(n.conf, "10-kindnet.conflist")
	n.write("10-kindnet.conflist", kindnet)
	must(t, os.Chown(path, 12, 34))
	must(t, os.Chmod(path, 0o640))
	n.write("20-other.conflist", kindnet)
	n.write("README", "not for the runtime")
	i := n.installer()
	n.run(i)
	n.installed(i)
	if !n.chained("10-kindnet.conflist") || n.chained("20-other.conflist") {
		t.Errorf("the first file, and no other, has to be chained")
	}
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	if st.Uid != 12 || st.Gid != 34 || st.Mode&0o777 != 0o640 {
		t.Errorf("owner %d:%d, mode %o", st.Uid, st.Gid, st.Mode&0o777)
	}
	info, err := os.Stat(filepath.Join(n.bin, PluginName))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("binary: %v, %v", info, err)
	}
	must(t, i.Uninstall())
	must(t, i.Uninstall())
	if got := n.read("10-kindnet.conflist"); got != kindnet {
		t.Errorf("not restored: %s", got)
	}
	if got := fmt.Sprint(n.names()); got != "[10-kindnet.conflist 20-other.conflist README]" {
		t.Errorf("left behind: %s", got)
	}
	if left, _ := os.ReadDir(n.bin); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	must(t, unix.Stat(path, &st))
	if st.Uid != 12 || st.Gid != 34 || st.Mode&0o777 != 0o640 {
		t.Errorf("after: owner %d:%d, mode %o", st.Uid, st.Gid, st.Mode&0o777)
	}
	time.Sleep(50 * time.Millisecond)
	if n.chained("10-kindnet.conflist") {
		t.Error("Run chained again after Uninstall")
	}
}

func TestUninstallKeepsWhatOthersChanged(t *testing.T) {
	n := newNode(t)
	n.write("10-kindnet.conflist", kindnet)
	i := n.installer()
	stop := n.run(i)
	n.installed(i)
	stop()
	n.replace("10-kindnet.conflist", strings.Replace(n.read("10-kindnet.conflist"), `"ptp"`, `"bridge"`, 1))
	i.KeepBinary = func() bool {
		if n.chained("10-kindnet.conflist") {
			t.Error("asked before the entries were gone")
		}
		return true
	}
	must(t, i.Uninstall())
	if got, want := n.read("10-kindnet.conflist"), strings.Replace(kindnet, `"ptp"`, `"bridge"`, 1); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(n.bin, PluginName)); err != nil {
		t.Errorf("binary was not kept: %v", err)
	}
}

func TestRepairs(t *testing.T) {
	n := newNode(t)
	i := n.installer()
	n.run(i)
	time.Sleep(20 * time.Millisecond)
	if ok, reason := i.Installed(); ok || reason == "" {
		t.Errorf("installed into an empty folder: %v, %q", ok, reason)
	}
	const name = "10-a.conflist"
	for what, change := range map[string]func(){
		"rewritten in place":    func() { n.write(name, kindnet) },
		"replaced":              func() { n.replace(name, kindnet) },
		"removed and made anew": func() { must(t, os.RemoveAll(filepath.Join(n.conf, name))); n.write(name, kindnet) },
		"entry changed": func() {
			n.replace(name, strings.Replace(kindnet, "\n\t]\n}", `,{"type":"culvert-cni"}]}`, 1))
		},
	} {
		change()
		took := n.soon(what, func() bool { return n.chained(name) })
		t.Logf("%s: chained after %s", what, took)
		if took > tolerance {
			t.Errorf("%s: chained after %s", what, took)
		}
	}
	n.installed(i)
	must(t, os.Remove(filepath.Join(n.bin, PluginName)))
	took := n.soon("binary", func() bool { return sameBinary(n.plugin, filepath.Join(n.bin, PluginName)) })
	t.Logf("binary removed: back after %s", took)

	n.write("00-first.conflist", kindnet)
	took = n.soon("a file that comes first", func() bool { return n.chained("00-first.conflist") })
	t.Logf("a file that comes first: chained after %s", took)
	must(t, i.Uninstall())
	if n.read("00-first.conflist") != kindnet || n.chained(name) {
		t.Error("not both files were cleaned")
	}
}

func TestHalfWrittenFileIsWaitedFor(t *testing.T) {
	n := newNode(t)
	half := kindnet[:len(kindnet)/2]
	n.write("10-a.conflist", half)
	n.write("20-b.conflist", kindnet)
	i := n.installer()
	n.run(i)
	time.Sleep(300 * time.Millisecond)
	if n.read("10-a.conflist") != half || n.chained("20-b.conflist") {
		t.Fatal("touched while a file was half written")
	}
	n.write("10-a.conflist", kindnet)
	took := n.soon("completed", func() bool { return n.chained("10-a.conflist") })
	if took > tolerance {
		t.Errorf("chained after %s", took)
	}
	if n.chained("20-b.conflist") {
		t.Error("the second was chained")
	}
	// What stays invalid is passed over, as CRI-O does, and still not touched.
	n.write("10-a.conflist", half)
	n.soon("next", func() bool { return n.chained("20-b.conflist") })
	if n.read("10-a.conflist") != half {
		t.Error("an invalid file was written")
	}
}

func TestFilesThatAreNotEdited(t *testing.T) {
	single := `{"cniVersion":"0.4.0","name":"n","type":"bridge"}`
	for name, tc := range map[string]struct {
		file, shadow string
		make         func(n *node)
	}{
		"conf": {"10-a.conf", "10-a-culvert.conflist", func(n *node) { n.write("10-a.conf", single) }},
		"json": {"10-a.json", "10-a-culvert.conflist", func(n *node) { n.write("10-a.json", single) }},
		"link": {"10-a.conflist", "10-a-culvert.conflist", func(n *node) {
			must(n.t, os.WriteFile(filepath.Join(n.bin, "outside"), []byte(kindnet), 0o600))
			must(n.t, os.Symlink(filepath.Join(n.bin, "outside"), filepath.Join(n.conf, "10-a.conflist")))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tc.make(n)
			before := n.read(tc.file)
			i := n.installer()
			n.run(i)
			n.installed(i)
			if names := n.names(); len(names) != 2 || names[0] != tc.shadow {
				t.Errorf("files %v, want %s first", names, tc.shadow)
			}
			if n.read(tc.file) != before {
				t.Error("the file itself was changed")
			}
			n.write("05-new.conflist", kindnet) // comes first now: the shadow has to go
			n.soon("new first", func() bool {
				return n.chained("05-new.conflist") && !strings.Contains(fmt.Sprint(n.names()), tc.shadow)
			})
			must(t, os.Remove(filepath.Join(n.conf, "05-new.conflist")))
			n.soon("shadow again", func() bool { return n.chained(tc.shadow) })
			must(t, i.Uninstall())
			if names := n.names(); len(names) != 1 || n.read(tc.file) != before {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

func TestShadowGoesWithItsFile(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conf", `{"cniVersion":"0.4.0","name":"n","type":"bridge"}`)
	i := n.installer()
	n.run(i)
	n.installed(i)
	n.write("10-a.conf", `{"cniVersion":"0.4.0","name":"n","type":"ptp"}`)
	n.soon("changed", func() bool { return strings.Contains(n.read("10-a-culvert.conflist"), `"ptp"`) })
	must(t, os.Remove(filepath.Join(n.conf, "10-a.conf")))
	n.soon("removed", func() bool { return len(n.names()) == 0 })
}

func TestFolders(t *testing.T) {
	n := newNode(t)
	must(t, os.Remove(n.conf))
	i := n.installer()
	n.run(i)
	time.Sleep(50 * time.Millisecond)
	if ok, reason := i.Installed(); ok || !strings.Contains(reason, "waiting for the folder") {
		t.Errorf("installed without a folder: %q", reason)
	}
	for range 2 { // the second time, the folder that is watched has gone
		must(t, os.Mkdir(n.conf, 0o755))
		n.write("10-a.conflist", kindnet)
		n.installed(i)
		n.write("10-a.conflist", kindnet)
		n.soon("repair", func() bool { return n.chained("10-a.conflist") })
		must(t, os.RemoveAll(n.conf))
		n.soon("gone", func() bool { ok, _ := i.Installed(); return !ok })
	}
	must(t, i.Uninstall())
}

func TestReadOnlyFolder(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conflist", kindnet)
	must(t, unix.Mount(n.conf, n.conf, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(n.conf, unix.MNT_DETACH) })
	must(t, unix.Mount("", n.conf, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	i := n.installer()
	n.run(i)
	n.soon("told", func() bool { _, reason := i.Installed(); return strings.Contains(reason, "mounted writable") })
	_, reason := i.Installed()
	t.Log(reason)
	if n.read("10-a.conflist") != kindnet {
		t.Error("changed")
	}
}

func TestRunRefusesWhatCannotWork(t *testing.T) {
	n := newNode(t)
	for name, change := range map[string]func(*Installer){
		"no plugin":       func(i *Installer) { i.Plugin = filepath.Join(n.bin, "none") },
		"relative folder": func(i *Installer) { i.ConfDir = "net.d" },
		"no socket":       func(i *Installer) { i.Config.Socket = "" },
	} {
		i := n.installer()
		change(i)
		if err := i.Run(t.Context()); err == nil {
			t.Errorf("%s: Run returned nil", name)
		}
	}
}
