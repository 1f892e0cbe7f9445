package datapath

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/policy"
)

// Plaintext to a PERMISSIVE port is what everybody pays for who has not asked for anything yet.

func BenchmarkPermissiveConnections(b *testing.B) {
	l := newLab(b, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	b.ResetTimer()
	err := inNetns(l.client, func() error {
		for range b.N {
			c, err := net.Dial("tcp4", port(pod4, 8080).String())
			if err != nil {
				return err
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return err
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
		return nil
	})
	must(b, err)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
}

func BenchmarkPermissiveThroughput(b *testing.B) {
	l := newLab(b, modes(policy.Permissive, nil))
	ln := l.listen(l.pod, port(pod4, 8080))
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	c, err := l.dial(l.client, netip.AddrPort{}, port(pod4, 8080))
	must(b, err)
	app := accept(b, ln)
	sent := make(chan error, 1)
	b.ResetTimer()
	go func() {
		for range b.N {
			if _, err := app.Write(block); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range b.N {
		_, err := io.ReadFull(c, block)
		must(b, err)
	}
	must(b, <-sent)
}

func BenchmarkAttach(b *testing.B) {
	l := newLab(b, modes(policy.Permissive, nil))
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		must(b, l.d.Detach(l.w.Cookie))
		must(b, l.d.SetPolicy(l.w.Cookie, modes(policy.Strict, nil)))
		b.StartTimer()
		must(b, l.d.Attach(l.w))
	}
}

// BenchmarkEgress is what one packet on its way out costs: nearly all are data, and one in a connection is a SYN-ACK.
func BenchmarkEgress(b *testing.B) {
	l := newLab(b, modes(policy.Permissive, nil))
	e, err := l.d.workloadEntry(l.w)
	must(b, err)
	programs, err := l.d.podPrograms(l.d.deliver, l.w, e)
	must(b, err)
	defer closePrograms(programs)
	for name, flags := range map[string]byte{"data": 0x10, "SYN-ACK": flagSYNACK} {
		b.Run(name, func(b *testing.B) {
			frame := make([]byte, 1514)
			frame[12], frame[13] = 0x08, 0x00
			ip := frame[14:]
			ip[0], ip[9] = 0x45, 6
			copy(ip[12:], pod4.AsSlice())
			copy(ip[16:], client4.AsSlice())
			copy(ip[20:], []byte{8080 >> 8, 8080 & 0xff, 40001 >> 8, 40001 & 0xff})
			ip[32], ip[33] = 5<<4, flags
			const packets = 1_000_000
			for b.Loop() {
				_, d, err := programs["culvert_egress"].Benchmark(frame, packets, nil)
				must(b, err)
				b.ReportMetric(float64(d.Nanoseconds()), "ns/packet")
			}
		})
	}
}
