package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// podInterface runs inside the pod.
func podInterface(w Workload) (*net.Interface, error) {
	var (
		i   *net.Interface
		err error
	)
	if w.Interface != "" {
		i, err = net.InterfaceByName(w.Interface)
	} else {
		i, err = interfaceWith(w.IPv4, w.IPv6)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %q of the pod: %w", w.Interface, err)
	}
	if len(i.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s is not Ethernet", i.Name)
	}
	return i, nil
}

// interfaceWith finds the interface that carries one of the addresses. Package net would list all addresses once for each
// interface.
func interfaceWith(v4, v6 netip.Addr) (*net.Interface, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	// Something changed meanwhile: what was listed stands, and what is looked for is mostly in it.
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, m := range messages {
		index, address, err := parseAddress(m)
		if err != nil {
			return nil, err
		}
		if address.IsValid() && (address == v4 || address == v6) {
			return net.InterfaceByIndex(index)
		}
	}
	return nil, errors.Join(fmt.Errorf("none carries %s or %s", v4, v6), err)
}

// parseAddress reads struct ifaddrmsg and its attributes. Where the link has two ends, the local address is our end.
func parseAddress(m []byte) (index int, address netip.Addr, err error) {
	if len(m) < unix.SizeofIfAddrmsg {
		return 0, address, errors.New("list addresses: short answer of the kernel")
	}
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, address, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range attrs {
		switch got, _ := netip.AddrFromSlice(a.Value); {
		case a.Attr.Type == unix.IFA_LOCAL, a.Attr.Type == unix.IFA_ADDRESS && !address.IsValid():
			address = got
		}
	}
	return int(nl.DeserializeIfAddrmsg(m).Index), address, nil
}
