package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

var errDisabled = errors.New("does not take mTLS: DISABLE")

// carrySameNode joins two pods of this node without TLS: no byte leaves their namespaces and this process.
// Both identities and the port's mode are checked as they would be on the wire.
func (t *tunnel) carrySameNode(s *spec, app *net.TCPConn, e endpoint, r *record) (hbone.Stats, error) {
	peer, release, err := t.deliverSameNode(s, e, r)
	if err != nil {
		reset(app)
		return hbone.Stats{}, err
	}
	defer release()
	r.open(spliced(app, peer))
	return splice(t.hard, app, peer)
}

func (t *tunnel) deliverSameNode(s *spec, e endpoint, r *record) (*net.TCPConn, func(), error) {
	target := t.workload(e.local)
	if target == nil {
		return nil, nil, fmt.Errorf("same node: %w", errWorkloadGone)
	}
	to := target.spec.Load()
	t.ids.await(t.hard, to.identity)
	if err := t.ids.authorizeLocal(s.identity, e.identity, to.identity); err != nil {
		return nil, nil, fmt.Errorf("same node: %w", err)
	}
	if err := checkPort(to, e.address); err != nil {
		return nil, nil, fmt.Errorf("same node: %w", err)
	}
	r.destination.workload, r.destination.naming = to.name, to.naming
	r.mode = to.forPort(e.address.Port()).name()
	return t.deliverAs(t.hard, target, e.address.Addr(), e.address.Port(), r.source.address, markSameNode)
}

// sameNodePriority is SAME_NODE_PRIORITY of the BPF programs.
const sameNodePriority = 1

// markSameNode tells the kernel that nothing of this delivery was encrypted. It counts by that and does nothing else, so a
// mark that cannot be set costs nobody a connection.
func markSameNode(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, sameNodePriority)
}

// checkPort says whether a workload takes mTLS on an address of its own.
func checkPort(s *spec, to netip.AddrPort) error {
	if to.Port() == hbonePort {
		return fmt.Errorf("port %d of %s is the tunnel's", to.Port(), s.name)
	}
	if m := s.forPort(to.Port()); m.mode == control.Mode_MODE_DISABLE {
		return fmt.Errorf("port %d of %s %w by %s", to.Port(), s.name, errDisabled, m.policy)
	}
	return nil
}
