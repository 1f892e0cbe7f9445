package hbone

import (
	"io"
	"testing"
)

// BenchmarkBulk carries one direction of one stream over loopback, both sides in this process.
// Its allocations must not grow with the bytes: see -benchmem.
func BenchmarkBulk(b *testing.B) {
	tn, apps := newAppTunnel(b, Config{})
	client, server, _ := tn.open(b, apps)
	block := make([]byte, 1<<20)
	done := make(chan struct{})
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		defer close(done)
		sink := make([]byte, 256<<10)
		for left := b.N * len(block); left > 0; {
			n, err := server.Read(sink)
			if err != nil {
				b.Error(err)
				return
			}
			left -= n
		}
	}()
	for range b.N {
		if _, err := client.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	<-done
}

// BenchmarkPingPong sends 16 KiB there and back on one stream.
func BenchmarkPingPong(b *testing.B) {
	tn, apps := newAppTunnel(b, Config{})
	client, server, _ := tn.open(b, apps)
	go io.Copy(server, server)
	block := make([]byte, 16<<10)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := client.Write(block); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, block); err != nil {
			b.Fatal(err)
		}
	}
}
