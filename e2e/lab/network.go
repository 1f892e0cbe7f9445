package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Every pod sees its node under these two addresses, as with Calico: pods then need no subnet, and
// the node needs one route for each.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// place is a network namespace that is being configured.
type place struct {
	*netlink.Handle
	ns netns.NsHandle
}

func openPlace(path string) (*place, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink in %s: %w", path, err), ns.Close())
	}
	return &place{Handle: h, ns: ns}, nil
}

func (p *place) close() {
	p.Handle.Close()
	_ = p.ns.Close()
}

// withPlaces opens both namespaces for the time of fn.
func withPlaces(pathA, pathB string, fn func(a, b *place) error) error {
	a, err := openPlace(pathA)
	if err != nil {
		return err
	}
	defer a.close()
	b, err := openPlace(pathB)
	if err != nil {
		return err
	}
	defer b.close()
	return fn(a, b)
}

func setUpLoopback(path string) error {
	p, err := openPlace(path)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer p.close()
	if _, err := p.up("lo"); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

func connectNodes(n, other *Node) error {
	return withPlaces(n.NetnsPath, other.NetnsPath, func(a, b *place) error {
		nameA, nameB := "to-"+other.Name, "to-"+n.Name
		linkA, linkB, err := joinPlaces(a, b, nameA, nameB)
		if err != nil {
			return err
		}
		n.links, other.links = append(n.links, nameA), append(other.links, nameB)
		return errors.Join(
			a.reachNode(linkA, n, other), b.reachNode(linkB, other, n),
			a.neighbour(linkA, linkB, other.address4(), other.address6()),
			b.neighbour(linkB, linkA, n.address4(), n.address6()),
		)
	})
}

// reachNode routes from node "from" to the other one and its pods.
func (p *place) reachNode(link netlink.Link, from, to *Node) error {
	return errors.Join(
		p.address(link, from.address4()), p.address(link, from.address6()),
		p.route(link, host(to.address4()), netip.Addr{}), p.route(link, host(to.address6()), netip.Addr{}),
		p.route(link, to.CIDR4, to.address4()), p.route(link, to.CIDR6, to.address6()),
	)
}

func connectPod(pod *Pod, hostSide string) error {
	return withPlaces(pod.Node.NetnsPath, pod.NetnsPath, func(node, inside *place) error {
		if _, err := inside.up("lo"); err != nil {
			return err
		}
		linkNode, eth0, err := joinPlaces(node, inside, hostSide, "eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			node.address(linkNode, gateway4), node.address(linkNode, gateway6),
			node.route(linkNode, host(pod.IP4), netip.Addr{}), node.route(linkNode, host(pod.IP6), netip.Addr{}),
			node.neighbour(linkNode, eth0, pod.IP4, pod.IP6),
			inside.address(eth0, pod.IP4), inside.address(eth0, pod.IP6),
			inside.neighbour(eth0, linkNode, gateway4, gateway6),
			inside.route(eth0, host(gateway4), netip.Addr{}),
			inside.route(eth0, netip.MustParsePrefix("0.0.0.0/0"), gateway4),
			inside.route(eth0, netip.MustParsePrefix("::/0"), gateway6),
		)
	})
}

// joinPlaces makes a veth pair with one end in each.
func joinPlaces(a, b *place, nameA, nameB string) (linkA, linkB netlink.Link, err error) {
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: nameB, PeerNamespace: netlink.NsFd(b.ns)}
	pair.Name = nameA
	if err := a.LinkAdd(pair); err != nil {
		return nil, nil, fmt.Errorf("make veth pair %s, %s: %w", nameA, nameB, err)
	}
	linkA, errA := a.up(nameA)
	linkB, errB := b.up(nameB)
	return linkA, linkB, errors.Join(errA, errB)
}

func (p *place) up(name string) (netlink.Link, error) {
	link, err := p.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if err := p.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set interface %s up: %w", name, err)
	}
	return link, nil
}

func (p *place) address(link netlink.Link, a netip.Addr) error {
	addr := &netlink.Addr{IPNet: ipNet(host(a))}
	if a.Is4() && a.IsLinkLocalUnicast() {
		addr.Scope = int(netlink.SCOPE_LINK)
	}
	if err := p.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", a, link.Attrs().Name, err)
	}
	return nil
}

func (p *place) route(link netlink.Link, to netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)}
	switch {
	case via.IsValid():
		r.Gw = via.AsSlice()
	case to.Addr().Is4():
		r.Scope = netlink.SCOPE_LINK
	}
	if err := p.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s by %s: %w", to, link.Attrs().Name, err)
	}
	return nil
}

// neighbour enters for good who is at the other end. In a lab that is seconds old, the first IPv6 packets
// would otherwise now and then be lost to neighbour discovery, which costs a TCP handshake a whole second.
func (p *place) neighbour(link, peer netlink.Link, addresses ...netip.Addr) error {
	for _, a := range addresses {
		err := p.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: peer.Attrs().HardwareAddr,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s to %s: %w", a, link.Attrs().Name, err)
		}
	}
	return nil
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
