package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel's socket diagnosis (linux/inet_diag.h), as far as it is needed. The library's own can neither destroy IPv6
// sockets nor ask for socket storage.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	diagMessageLen = 72
	diagRequestLen = 56

	requestStorages   = 2  // INET_DIAG_REQ_SK_BPF_STORAGES
	requestStorageMap = 1  // SK_DIAG_BPF_STORAGE_REQ_MAP_FD
	diagStorages      = 20 // INET_DIAG_SK_BPF_STORAGES

	nlaTypeMask   = 0x3fff
	tcpTimeWait   = 6
	tcpListen     = 10
	diagAllStates = 0xfff
)

// socketID names one socket to the kernel; the cookie makes it exact.
type socketID struct {
	family        uint8
	local, remote netip.AddrPort
	ifindex       uint32
	cookie        [2]uint32
}

type diagSocket struct {
	id     socketID
	state  uint8
	marked bool // carries the storage asked for
}

// request serialises struct inet_diag_req_v2.
func (s socketID) request(states uint32) rawRequest {
	b := make(rawRequest, diagRequestLen)
	b[0], b[1] = s.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], states)
	binary.BigEndian.PutUint16(b[8:], s.local.Port())
	binary.BigEndian.PutUint16(b[10:], s.remote.Port())
	copy(b[12:28], diagAddress(s.family, s.local.Addr()))
	copy(b[28:44], diagAddress(s.family, s.remote.Addr()))
	binary.NativeEndian.PutUint32(b[44:], s.ifindex)
	binary.NativeEndian.PutUint32(b[48:], s.cookie[0])
	binary.NativeEndian.PutUint32(b[52:], s.cookie[1])
	return b
}

func diagAddress(family uint8, a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	if family == unix.AF_INET {
		return a.Unmap().AsSlice()
	}
	b := a.As16()
	return b[:]
}

type rawRequest []byte

func (r rawRequest) Len() int          { return len(r) }
func (r rawRequest) Serialize() []byte { return r }

// dumpSockets lists the TCP sockets of the current network namespace, and which of them carry a value in the storage map.
func dumpSockets(family uint8, storageMap int) ([]diagSocket, error) {
	req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	req.AddData(socketID{family: family}.request(diagAllStates | 1<<12))
	storages := nl.NewRtAttr(requestStorages, nil)
	storages.AddRtAttr(requestStorageMap, nl.Uint32Attr(uint32(storageMap)))
	req.AddData(storages)
	messages, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	sockets := make([]diagSocket, 0, len(messages))
	for _, m := range messages {
		s, err := parseSocket(m)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// parseSocket reads struct inet_diag_msg and looks for the storage among its attributes.
func parseSocket(m []byte) (diagSocket, error) {
	if len(m) < diagMessageLen {
		return diagSocket{}, errors.New("list sockets: short answer of the kernel")
	}
	address := func(b []byte) netip.Addr {
		if m[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16([16]byte(b[:16]))
	}
	s := diagSocket{state: m[1], id: socketID{
		family:  m[0],
		local:   netip.AddrPortFrom(address(m[8:]), binary.BigEndian.Uint16(m[4:])),
		remote:  netip.AddrPortFrom(address(m[24:]), binary.BigEndian.Uint16(m[6:])),
		ifindex: binary.NativeEndian.Uint32(m[40:]),
		cookie:  [2]uint32{binary.NativeEndian.Uint32(m[44:]), binary.NativeEndian.Uint32(m[48:])},
	}}
	attrs, err := nl.ParseRouteAttr(m[diagMessageLen:])
	if err != nil {
		return s, fmt.Errorf("list sockets: %w", err)
	}
	for _, a := range attrs {
		s.marked = s.marked || a.Attr.Type&nlaTypeMask == diagStorages && len(a.Value) > 0
	}
	return s, nil
}

// destroySocket aborts a socket: both ends see a reset.
func destroySocket(id socketID) error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddData(id.request(0xffffffff))
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
