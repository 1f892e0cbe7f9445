package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestStrayOutputIsFlushed writes a record beneath us, as crypto/tls does to answer a KeyUpdate.
func TestStrayOutputIsFlushed(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{})
	client, server, _ := tn.open(t, apps)
	exchange(t, client, server, []byte("x"))
	frame := appendFrame(nil, frame{length: 8, typ: framePing})
	if _, err := tn.client.tls.Write(append(frame, 1, 2, 3, 4, 5, 6, 7, 8)); err != nil {
		t.Fatal(err)
	}
	if !tn.client.records.stray() {
		t.Fatal("nothing is held")
	}
	exchange(t, server, client, []byte("y")) // whatever is read ends in a flush
	for end := time.Now().Add(patience); tn.client.records.stray(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still held")
		}
	}
}

// TestKeyUpdate has openssl change its keys and demand the same of us: crypto/tls answers such a
// demand but cannot be made to send one.
func TestKeyUpdate(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: nobody to send a KeyUpdate")
	}
	cc, sc := tlsConfigs(t)
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(cc.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "client.pem")
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cc.Certificates[0].Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	addr, made := serveOnce(t, sc)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, openssl, "s_client", "-connect", addr, "-cert", file, "-key", file, "-alpn", "h2", "-msg")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server := await(t, made, "handshake")
	defer server.Close()
	var frames bytes.Buffer
	frames.WriteString(clientPreface)
	fr := http2.NewFramer(&frames, nil)
	fr.WriteSettings()
	for _, part := range []string{frames.String(), "K\n"} {
		io.WriteString(in, part)
		time.Sleep(300 * time.Millisecond) // s_client reads a command only at the start of a read
	}
	frames.Reset()
	fr.WritePing(false, [8]byte([]byte("pingpong")))
	io.WriteString(in, frames.String())
	time.Sleep(300 * time.Millisecond)
	if err := server.Err(); err != nil {
		t.Errorf("connection ended: %v", err)
	}
	in.Close()
	cmd.Wait()
	if n := bytes.Count(out.Bytes(), []byte("KeyUpdate")); n != 2 {
		t.Errorf("%d KeyUpdates, want one each way:\n%s", n, out.Bytes())
	}
	if n := bytes.Count(out.Bytes(), []byte("pingpong")); n != 1 {
		t.Errorf("%d answers to the PING after the KeyUpdate", n)
	}
}

// serveOnce takes one connection and refuses its streams.
func serveOnce(t *testing.T, sc *tls.Config) (addr string, made chan *Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	made = make(chan *Conn, 1)
	go func() {
		tcp, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		c, err := Server(context.Background(), tcp.(*net.TCPConn), sc, Config{}, refuse503)
		if err != nil {
			t.Error(err)
			return
		}
		made <- c
	}()
	return ln.Addr().String(), made
}
