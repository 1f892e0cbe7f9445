package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

// Refusals calls f for every reported refusal until the context ends. One at a time may run: readers share a buffer.
func (d *Datapath) Refusals(ctx context.Context, f func(Refusal)) error {
	r, err := ringbuf.NewReader(d.maps.Refusals)
	if err != nil {
		return fmt.Errorf("refusals: %w", err)
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { r.Close() })()
	for {
		record, err := r.Read()
		if errors.Is(err, ringbuf.ErrClosed) {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("refusals: %w", err)
		}
		var raw bpf.MapsRefusal
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &raw); err != nil {
			return fmt.Errorf("refusal record: %w", err)
		}
		f(Refusal{
			Cookie: raw.Cookie, Source: raw.Source.AddrPort(), Destination: raw.Destination.AddrPort(),
			Suppressed: raw.Suppressed,
		})
	}
}

// Plaintext returns who has opened plaintext connections to the workloads; the kernel keeps the latest 16,384.
func (d *Datapath) Plaintext() ([]PlaintextCount, error) {
	var counts []PlaintextCount
	err := batches(d.maps.Plaintext, func(keys []bpf.MapsPlaintextKey, values []bpf.MapsPlaintextValue) {
		for i, k := range keys {
			counts = append(counts, PlaintextCount{
				Cookie: k.Cookie, Port: k.Port, Peer: bpf.Address(k.Peer), Count: values[i].Count, LastNanoseconds: values[i].Last,
			})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("map of plaintext connections: %w", err)
	}
	return counts, nil
}

func counterNames() map[bpf.MapsCounter]string {
	return map[bpf.MapsCounter]string{
		bpf.MapsCounterCOUNTER_CONNECT_REDIRECTED:           "connect_redirected",
		bpf.MapsCounterCOUNTER_CONNECT_EXEMPT:               "connect_exempt",
		bpf.MapsCounterCOUNTER_CONNECT_REFUSED_NO_LISTENER:  "connect_refused_no_listener",
		bpf.MapsCounterCOUNTER_REDIRECT_STEERED:             "redirect_steered",
		bpf.MapsCounterCOUNTER_REDIRECT_REFUSED_NO_LISTENER: "redirect_refused_no_listener",
		bpf.MapsCounterCOUNTER_REDIRECT_ACCEPTED:            "redirect_accepted",
		bpf.MapsCounterCOUNTER_HBONE_STEERED:                "hbone_steered",
		bpf.MapsCounterCOUNTER_HBONE_REFUSED_NO_LISTENER:    "hbone_refused_no_listener",
		bpf.MapsCounterCOUNTER_STRICT_REFUSED:               "strict_refused",
		bpf.MapsCounterCOUNTER_STRICT_REFUSED_NO_MODE:       "strict_refused_no_mode",
		bpf.MapsCounterCOUNTER_PLAINTEXT_ACCEPTED:           "plaintext_accepted",
		bpf.MapsCounterCOUNTER_DELIVERY_STARTED:             "delivery_started",
		bpf.MapsCounterCOUNTER_DELIVERY_CONFLICT:            "delivery_conflict",
		bpf.MapsCounterCOUNTER_DELIVERY_REFUSED:             "delivery_refused",
		bpf.MapsCounterCOUNTER_DELIVERY_ENDED:               "delivery_ended",
		bpf.MapsCounterCOUNTER_SPOOFED_DELIVERY_DROPPED:     "spoofed_delivery_dropped",
		bpf.MapsCounterCOUNTER_SPOOFED_SOURCE_DROPPED:       "spoofed_source_dropped",
		bpf.MapsCounterCOUNTER_UNREADABLE_DROPPED:           "unreadable_dropped",
		bpf.MapsCounterCOUNTER_PROBE_ACCEPTED:               "probe_accepted",
		bpf.MapsCounterCOUNTER_PROBE_NOT_EXEMPTED:           "probe_not_exempted",
		bpf.MapsCounterCOUNTER_STRICT_ANSWER_DROPPED:        "strict_answer_dropped",
	}
}

// Counters returns what the programs have counted since the maps were made, by name.
func (d *Datapath) Counters() (map[string]uint64, error) {
	counters := map[string]uint64{}
	for i, name := range counterNames() {
		n, err := d.counter(uint32(i))
		if err != nil {
			return nil, fmt.Errorf("counter %s: %w", name, err)
		}
		counters[name] = n
	}
	return counters, nil
}

// counter adds up what all processors have counted.
func (d *Datapath) counter(which uint32) (sum uint64, err error) {
	var perCPU []uint64
	if err := d.maps.Counters.Lookup(which, &perCPU); err != nil {
		return 0, err
	}
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}

// ConnectionKind is what became of connections, and the mode of the ports that they were for. Unset: the port had none,
// or no port of ours was meant.
type ConnectionKind struct {
	Mode    policy.Mode
	Outcome string
}

// outcomeNames are those of connections that came in, and of those that no mode applies to.
func outcomeNames() (inbound, modeless map[bpf.MapsOutcome]string) {
	return map[bpf.MapsOutcome]string{
			bpf.MapsOutcomeOUTCOME_MTLS:               "mtls",
			bpf.MapsOutcomeOUTCOME_SAME_NODE:          "same_node",
			bpf.MapsOutcomeOUTCOME_PLAINTEXT_ACCEPTED: "plaintext_accepted",
			bpf.MapsOutcomeOUTCOME_PLAINTEXT_REFUSED:  "plaintext_refused",
			bpf.MapsOutcomeOUTCOME_PROBE_EXEMPTED:     "probe_exempted",
		}, map[bpf.MapsOutcome]string{
			bpf.MapsOutcomeOUTCOME_PASS_THROUGH: "pass_through",
			bpf.MapsOutcomeOUTCOME_NO_LISTENER:  "no_listener",
		}
}

// Connections returns how many connections there were of each kind since the maps were made, none left out.
func (d *Datapath) Connections() (map[ConnectionKind]uint64, error) {
	connections := map[ConnectionKind]uint64{}
	read := func(mode policy.Mode, outcomes map[bpf.MapsOutcome]string) error {
		first := uint32(bpf.MapsCounterCOUNTER_CONNECTIONS) + uint32(mode)*uint32(bpf.MapsOutcomeOUTCOME_ROOM)
		for i, name := range outcomes {
			n, err := d.counter(first + uint32(i))
			if err != nil {
				return fmt.Errorf("counter of connections %s %s: %w", mode, name, err)
			}
			connections[ConnectionKind{mode, name}] = n
		}
		return nil
	}
	inbound, modeless := outcomeNames()
	for _, mode := range []policy.Mode{policy.Unset, policy.Disable, policy.Permissive, policy.Strict} {
		if err := read(mode, inbound); err != nil {
			return nil, err
		}
	}
	return connections, read(policy.Unset, modeless)
}
