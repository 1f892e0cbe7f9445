package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
)

const hbonePort = 15008

// ClosePlaintext closes the open inbound plaintext connections on those ports of a pod that closePort names, handshakes
// included, and returns how many. SetPolicy comes first. Inbound is a connection whose port is listened on or that was
// seen to come in. Connections that the pod opened itself or has with itself, deliveries, the kubelet's probes and HBONE
// stay.
func (d *Datapath) ClosePlaintext(netns *os.File, cookie uint64, closePort func(port uint16) bool) (int, error) {
	var w bpf.MapsWorkload
	if err := d.maps.Workloads.Lookup(cookie, &w); err != nil {
		return 0, fmt.Errorf("close plaintext: workload %d: %w", cookie, err)
	}
	s := sweep{d: d, cookie: cookie, workload: w}
	s.chosen = func(k diagSocket, inbound bool) bool { return inbound && s.isPlaintext(k, closePort) }
	err := inNetns(netns, func() error {
		if err := s.run(); err != nil {
			return err
		}
		// A SYN that passed before the mode changed may have been on its way to the table of sockets.
		time.Sleep(10 * time.Millisecond)
		return s.run()
	})
	if err != nil {
		return s.closed, fmt.Errorf("close plaintext of workload %d: %w", cookie, err)
	}
	return s.closed, nil
}

// CloseDeliveries resets both ends of the deliveries that are open in a pod, and returns how many sockets that were.
// Detach wants it first: without our programs, what the two ends still have to say would go out on the wire.
func (d *Datapath) CloseDeliveries(netns *os.File, cookie uint64) (int, error) {
	s := sweep{d: d, cookie: cookie}
	s.chosen = func(k diagSocket, _ bool) bool {
		return k.state != tcpListen && s.delivered(k.id.remote.Addr().Unmap(), k.id.remote.Port(), k.id.local.Port())
	}
	if err := inNetns(netns, s.run); err != nil {
		return s.closed, fmt.Errorf("close deliveries of workload %d: %w", cookie, err)
	}
	return s.closed, nil
}

type sweep struct {
	d        *Datapath
	cookie   uint64
	workload bpf.MapsWorkload
	chosen   func(k diagSocket, inbound bool) bool
	closed   int
}

func (s *sweep) run() error {
	return s.each(func(k diagSocket, inbound bool) error {
		if !s.chosen(k, inbound) {
			return nil
		}
		switch err := destroySocket(k.id); {
		case err == nil:
			s.closed++
		case !errors.Is(err, unix.ENOENT): // else it has ended by itself
			return fmt.Errorf("%s from %s: %w", k.id.local, k.id.remote, err)
		}
		return nil
	})
}

// each looks at all sockets of the current network namespace. What f cannot do keeps it from none of the others.
func (s *sweep) each(f func(k diagSocket, inbound bool) error) error {
	var sockets []diagSocket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := dumpSockets(family, s.d.maps.InboundPlaintext.FD())
		if err != nil {
			return err
		}
		sockets = append(sockets, found...)
	}
	listening := map[uint16]bool{}
	for _, k := range sockets {
		if k.state == tcpListen {
			listening[k.id.local.Port()] = true
		}
	}
	var errs []error
	for _, k := range sockets {
		if err := f(k, k.marked || listening[k.id.local.Port()]); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *sweep) isPlaintext(k diagSocket, closePort func(uint16) bool) bool {
	peer, port := k.id.remote.Addr().Unmap(), k.id.local.Port()
	if k.state == tcpListen || k.state == tcpTimeWait || port == hbonePort || !closePort(port) {
		return false
	}
	if !peer.IsValid() || peer.IsLoopback() || peer == k.id.local.Addr().Unmap() || s.own(peer) {
		return false
	}
	return !s.delivered(peer, k.id.remote.Port(), port) && !s.probe(k.id)
}

func (s *sweep) own(a netip.Addr) bool {
	if a.Is4() {
		return bpf.Words(a)[3] == s.workload.Ip4
	}
	return bpf.Words(a) == s.workload.Ip6
}

func (s *sweep) delivered(peer netip.Addr, peerPort, port uint16) bool {
	k := bpf.MapsDeliveryKey{Cookie: s.cookie, Peer: bpf.Words(peer), PeerPort: peerPort, LocalPort: port}
	var v bpf.MapsDeliveryValue
	return s.d.maps.Deliveries.Lookup(k, &v) == nil
}

func (s *sweep) probe(id socketID) bool {
	var v bpf.MapsProbeValue
	return s.d.maps.Probes.Lookup(probeKey(id.remote, id.local), &v) == nil
}
