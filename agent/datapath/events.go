package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/culvert-mesh/culvert/bpf"
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
		var perCPU []uint64
		if err := d.maps.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("counter %s: %w", name, err)
		}
		for _, n := range perCPU {
			counters[name] += n
		}
	}
	return counters, nil
}
