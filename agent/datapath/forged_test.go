package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/policy"
)

const (
	flagSYN    = 0x02
	flagSYNACK = 0x12
)

// wire sends and receives whole packets at the client's end of the link.
type wire struct {
	t   testing.TB
	fd  int
	idx int
	mac net.HardwareAddr
}

func (l *lab) wire() *wire {
	r := &wire{t: l.t}
	for _, ns := range []uintptr{l.pod.Fd(), l.client.Fd()} {
		h, err := netlink.NewHandleAt(netns.NsHandle(ns))
		must(l.t, err)
		i, err := h.LinkByName("eth0")
		must(l.t, err)
		if r.mac == nil {
			r.mac = i.Attrs().HardwareAddr
		} else {
			r.idx = i.Attrs().Index
		}
		h.Close()
	}
	must(l.t, inNetns(l.client, func() (err error) {
		r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0x0300)
		if err != nil {
			return err
		}
		return unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: r.idx})
	}))
	l.t.Cleanup(func() { unix.Close(r.fd) })
	unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1, Usec: 500000})
	return r
}

func (r *wire) send(src, dst netip.AddrPort, flags byte, seq, ack uint32, data string) {
	tcp := make([]byte, 20+len(data))
	binary.BigEndian.PutUint16(tcp[0:], src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12], tcp[13] = 5<<4, flags
	tcp[14] = 0xff
	copy(tcp[20:], data)
	s, d := src.Addr().AsSlice(), dst.Addr().AsSlice()
	binary.BigEndian.PutUint16(tcp[16:], checksum(s, d, []byte{0, 6, 0, byte(len(tcp))}, tcp))
	var p []byte
	proto := uint16(0xdd86)
	if src.Addr().Is4() {
		proto = 0x0008
		p = make([]byte, 20)
		p[0], p[8], p[9] = 0x45, 64, 6
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(tcp)))
		copy(p[12:], s)
		copy(p[16:], d)
		binary.BigEndian.PutUint16(p[10:], checksum(p))
	} else {
		p = make([]byte, 40)
		p[0], p[6], p[7] = 0x60, 6, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(tcp)))
		copy(p[8:], s)
		copy(p[24:], d)
	}
	a := &unix.SockaddrLinklayer{Protocol: proto, Ifindex: r.idx, Halen: 6}
	copy(a.Addr[:], r.mac)
	must(r.t, unix.Sendto(r.fd, append(p, tcp...), 0, a))
}

// recv waits for a TCP packet from src to dst with those flags.
func (r *wire) recv(src, dst netip.AddrPort, flags byte) (seq, ack uint32, data string, ok bool) {
	b := make([]byte, 2000)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(r.fd, b, 0)
		if err != nil {
			return
		}
		if f, isl := from.(*unix.SockaddrLinklayer); !isl || f.Pkttype == 4 {
			continue
		}
		p := b[:n]
		var h int
		var s, d netip.Addr
		if p[0]>>4 == 4 && p[9] == 6 {
			h = 20
			s, _ = netip.AddrFromSlice(p[12:16])
			d, _ = netip.AddrFromSlice(p[16:20])
		} else if p[0]>>4 == 6 && p[6] == 6 {
			h = 40
			s, _ = netip.AddrFromSlice(p[8:24])
			d, _ = netip.AddrFromSlice(p[24:40])
		} else {
			continue
		}
		tcp := p[h:]
		sp, dp := binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
		off := int(tcp[12]>>4) * 4
		if s == src.Addr() && d == dst.Addr() && sp == src.Port() && dp == dst.Port() && tcp[13]&flags == flags {
			return binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:]), string(tcp[off:]), true
		}
	}
	return
}

// Linux takes an IPv6 segment from "::" off the wire; it must not pass for the pod itself.
func TestUnspecifiedSourceIsNotThePodItself(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(netip.IPv6Unspecified(), 8080))
	r := l.wire()
	me, it := port(netip.IPv6Unspecified(), 5555), port(pod6, 8080)
	r.send(me, it, flagSYN, 1000, 0, "")
	if _, _, _, ok := r.recv(it, me, flagSYNACK); ok {
		t.Error("a STRICT port answers a SYN from ::")
	}
}

// The guard of the way in knows the pod's first address; another one is forged no better.
func TestSourceEqualToTheDestinationIsDropped(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(netip.IPv6Unspecified(), 8080))
	second := netip.MustParseAddr("fd99::5")
	h, err := netlink.NewHandleAt(netns.NsHandle(l.pod.Fd()))
	must(t, err)
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	must(t, err)
	must(t, h.AddrAdd(eth0, &netlink.Addr{
		IPNet: &net.IPNet{IP: second.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD,
	}))
	before := l.counter("spoofed_source_dropped")
	l.wire().send(port(second, 5555), port(second, 8080), flagSYN, 1000, 0, "")
	eventually(t, "the forged SYN is dropped", func() bool { return l.counter("spoofed_source_dropped") > before })
}

// An application that waits for data before it takes a connection has not finished the handshake when the tunnel
// resets it. It must learn of the reset: else the client that was shown could finish it, in plaintext.
func TestResetOfAHalfOpenDeliveryReachesTheApplication(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	ln := l.listen(l.pod, port(pod4, 8080))
	raw, err := ln.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1))
	}))
	r := l.wire()
	client, application := port(remote4, 40001), port(pod4, 8080)
	c, err := l.deliver(client, 8080)
	must(t, err)
	must(t, c.SetLinger(0))
	must(t, c.Close())
	if _, _, _, ok := r.recv(application, client, flagSYNACK); ok {
		t.Error("the application goes on with the handshake, on the wire")
	}
}

func TestCloseDeliveriesEndsBothEnds(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	c, err := l.deliver(port(remote4, 40001), 8080)
	must(t, err)
	greeting(t, c)
	closed, err := l.d.CloseDeliveries(l.pod, l.w.Cookie)
	must(t, err)
	if closed == 0 {
		t.Error("nothing was closed")
	}
	c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the tunnel's end is still open: %v", err)
	}
	eventually(t, "no delivery is left", func() bool { return l.deliveries() == 0 })
}
