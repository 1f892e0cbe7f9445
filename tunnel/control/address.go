package control

import (
	"fmt"
	"net/netip"
)

// FromAddr writes an address as messages carry it: 4 or 16 bytes, IPv4 never in its IPv6 form.
func FromAddr(a netip.Addr) []byte {
	return a.Unmap().WithZone("").AsSlice()
}

// FromAddrs is FromAddr for several.
func FromAddrs(addresses []netip.Addr) [][]byte {
	out := make([][]byte, len(addresses))
	for i, a := range addresses {
		out[i] = FromAddr(a)
	}
	return out
}

// ToAddr reads an address of a message.
func ToAddr(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes, want 4 or 16", len(b))
	}
	return a.Unmap(), nil
}

// ToAddrs is ToAddr for several.
func ToAddrs(bs [][]byte) ([]netip.Addr, error) {
	out := make([]netip.Addr, len(bs))
	for i, b := range bs {
		a, err := ToAddr(b)
		if err != nil {
			return nil, err
		}
		out[i] = a
	}
	return out, nil
}

// ToAddrPort reads an address and a port of a message.
func ToAddrPort(b []byte, port uint32) (netip.AddrPort, error) {
	a, err := ToAddr(b)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if port > 65535 {
		return netip.AddrPort{}, fmt.Errorf("port %d, want at most 65535", port)
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}
