package bpf

import (
	"encoding/binary"
	"net/netip"
)

// Words is an address as the programs keep it: 128 bits in network order, IPv4 mapped into IPv6.
func Words(a netip.Addr) [4]uint32 {
	if !a.IsValid() {
		return [4]uint32{}
	}
	b := a.As16()
	var w [4]uint32
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// Address is the reverse of Words.
func Address(w [4]uint32) netip.Addr {
	var b [16]byte
	for i, v := range w {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return netip.AddrFrom16(b).Unmap()
}

// AddrPort is the endpoint with its port in host order.
func (e MapsEndpoint) AddrPort() netip.AddrPort {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], e.Port)
	return netip.AddrPortFrom(Address(e.Ip), binary.BigEndian.Uint16(b[:]))
}
