package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/culvert-mesh/culvert/bpf"
)

// ErrCapturedFull says that the map of captured prefixes has no room for all of them.
var ErrCapturedFull = errors.New("connections to them go around the tunnel")

// SetCaptured says which destinations are redirected, all of them; the first call of a process also removes what only a
// predecessor wanted. What stays captured is captured all the time: what is new comes first, and what is no longer wanted
// goes first only where the map is full. Ranges come before single addresses, and never lose their place to them.
//
// After an error, what could not be done is still to be done: every further call, also UpdateCaptured without anything,
// tries again. ErrCapturedFull names how many have no room.
func (d *Datapath) SetCaptured(prefixes []netip.Prefix) error {
	keys, err := prefixKeys(prefixes)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.captured.set(keys)
	return d.captured.settle()
}

// UpdateCaptured changes what SetCaptured said, at the cost of the difference alone. Before the first SetCaptured it
// changes what a predecessor said. To add what is captured, or to remove what is not, is no error; what is in both is
// captured.
func (d *Datapath) UpdateCaptured(add, remove []netip.Prefix) error {
	added, err := prefixKeys(add)
	if err != nil {
		return err
	}
	removed, err := prefixKeys(remove)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range removed {
		d.captured.remove(k)
	}
	for _, k := range added {
		d.captured.add(k)
	}
	return d.captured.settle()
}

func prefixKeys(prefixes []netip.Prefix) ([]bpf.MapsPrefixKey, error) {
	keys := make([]bpf.MapsPrefixKey, 0, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() {
			return nil, fmt.Errorf("captured prefix %s is not valid", p)
		}
		keys = append(keys, prefixKey(p))
	}
	return keys, nil
}

func prefixKey(p netip.Prefix) bpf.MapsPrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return bpf.MapsPrefixKey{Bits: uint32(bits), Ip: bpf.Words(p.Masked().Addr())}
}

type prefixSet map[bpf.MapsPrefixKey]struct{}

func (s prefixSet) has(k bpf.MapsPrefixKey) bool { _, ok := s[k]; return ok }

// captured knows what the kernel's map holds, because to ask it costs as much as to write it all.
type captured struct {
	kernel  *ebpf.Map
	held    prefixSet // what is in the map
	missing prefixSet // what is wanted and not in the map
	stale   prefixSet // what is in the map and not wanted
}

// readCaptured learns what an earlier process wrote, and wants that until it is told otherwise.
func readCaptured(kernel *ebpf.Map) (*captured, error) {
	c := &captured{kernel: kernel, held: prefixSet{}, missing: prefixSet{}, stale: prefixSet{}}
	var (
		k bpf.MapsPrefixKey
		v uint32
	)
	it := kernel.Iterate()
	for it.Next(&k, &v) {
		c.held[k] = struct{}{}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("map of captured prefixes: %w", err)
	}
	return c, nil
}

func (c *captured) set(keys []bpf.MapsPrefixKey) {
	wanted := make(prefixSet, len(keys))
	for _, k := range keys {
		wanted[k] = struct{}{}
		c.add(k)
	}
	for k := range c.missing {
		if !wanted.has(k) {
			delete(c.missing, k)
		}
	}
	for k := range c.held {
		if !wanted.has(k) {
			c.stale[k] = struct{}{}
		}
	}
}

func (c *captured) add(k bpf.MapsPrefixKey) {
	if c.held.has(k) {
		delete(c.stale, k)
	} else {
		c.missing[k] = struct{}{}
	}
}

func (c *captured) remove(k bpf.MapsPrefixKey) {
	if c.held.has(k) {
		c.stale[k] = struct{}{}
	} else {
		delete(c.missing, k)
	}
}

// settle makes the map what is wanted. Nothing is given up after an error: it stays missing, or stale.
func (c *captured) settle() error {
	if err := errors.Join(c.putRanges(), c.putSingles()); err != nil {
		return err
	}
	for k := range c.stale {
		if err := c.delete(k); err != nil {
			return err
		}
	}
	if n := len(c.missing); n > 0 {
		return fmt.Errorf("%d of %d captured prefixes have no room: %w", n, n+len(c.held), ErrCapturedFull)
	}
	return nil
}

// putRanges writes the widest first, and takes the place of single addresses where it must.
func (c *captured) putRanges() error {
	var ranges []bpf.MapsPrefixKey
	for k := range c.missing {
		if !isSingle(k) {
			ranges = append(ranges, k)
		}
	}
	slices.SortFunc(ranges, func(a, b bpf.MapsPrefixKey) int {
		return cmp.Or(cmp.Compare(a.Bits, b.Bits), slices.Compare(a.Ip[:], b.Ip[:]))
	})
	for i, k := range ranges {
		if c.full() {
			if ok, err := c.dropOne(ranges[i:]); !ok {
				return err
			}
		}
		if err := c.put(k); err != nil {
			return err
		}
	}
	return nil
}

func (c *captured) putSingles() error {
	for k := range c.missing {
		if !isSingle(k) {
			continue
		}
		if c.full() {
			if ok, err := c.dropOne(nil); !ok {
				return err
			}
		}
		if err := c.put(k); err != nil {
			return err
		}
	}
	return nil
}

// dropOne makes room for one entry, and reports whether it did. What is not wanted goes first, of that single addresses,
// of these what the coming ranges do not hold, because that stays captured. Where ranges are to come, wanted single
// addresses may go too.
func (c *captured) dropOne(coming []bpf.MapsPrefixKey) (bool, error) {
	var best *bpf.MapsPrefixKey
	bestRank := 0
	consider := func(k bpf.MapsPrefixKey, rank int) bool {
		if best == nil || rank > bestRank {
			best, bestRank = &k, rank
		}
		return bestRank == bestVictim
	}
	for k := range c.stale {
		if consider(k, victimRank(k, coming)) {
			break
		}
	}
	if best == nil && len(coming) > 0 {
		for k := range c.held {
			if isSingle(k) && consider(k, victimRank(k, coming)) {
				break
			}
		}
	}
	if best == nil {
		return false, nil
	}
	wanted := !c.stale.has(*best)
	if err := c.delete(*best); err != nil {
		return false, err
	}
	if wanted {
		c.missing[*best] = struct{}{}
	}
	return true, nil
}

// bestVictim is the rank of a single address that no range is coming for.
const bestVictim = 1000

func victimRank(k bpf.MapsPrefixKey, coming []bpf.MapsPrefixKey) int {
	rank := int(k.Bits)
	if isSingle(k) {
		rank = bestVictim
	}
	if slices.ContainsFunc(coming, func(r bpf.MapsPrefixKey) bool { return holds(r, k) }) {
		rank -= bestVictim
	}
	return rank
}

func isSingle(k bpf.MapsPrefixKey) bool { return k.Bits == 128 }

// holds compares as IPv6, in which IPv4 is one range of many.
func holds(r, k bpf.MapsPrefixKey) bool {
	as16 := func(k bpf.MapsPrefixKey) netip.Addr { return netip.AddrFrom16(bpf.Address(k.Ip).As16()) }
	return r.Bits <= k.Bits && netip.PrefixFrom(as16(r), int(r.Bits)).Contains(as16(k))
}

func (c *captured) full() bool { return len(c.held) >= int(c.kernel.MaxEntries()) }

func (c *captured) put(k bpf.MapsPrefixKey) error {
	if err := c.kernel.Update(k, uint32(1), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("captured prefix %s: %w", prefixName(k), err)
	}
	c.held[k] = struct{}{}
	delete(c.missing, k)
	return nil
}

func (c *captured) delete(k bpf.MapsPrefixKey) error {
	if err := ignoreMissing(c.kernel.Delete(k)); err != nil {
		return fmt.Errorf("captured prefix %s: %w", prefixName(k), err)
	}
	delete(c.held, k)
	delete(c.stale, k)
	return nil
}

func prefixName(k bpf.MapsPrefixKey) netip.Prefix {
	a, bits := bpf.Address(k.Ip), int(k.Bits)
	if a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}
