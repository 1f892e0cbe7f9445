package datapath

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

func modeKey(cookie uint64, port uint16) bpf.MapsModeKey {
	return bpf.MapsModeKey{Cookie: cookie, Port: port}
}

// readModes learns what an earlier process wrote.
func (d *Datapath) readModes() error {
	var (
		k    bpf.MapsModeKey
		mode uint32
	)
	it := d.maps.Modes.Iterate()
	for it.Next(&k, &mode) {
		m, ok := d.modes[k.Cookie]
		if !ok {
			m = policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{}}
		}
		if k.Port == 0 {
			m.Default = policy.Mode(mode)
		} else {
			m.Ports[k.Port] = policy.Mode(mode)
		}
		d.modes[k.Cookie] = m
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("map of modes: %w", err)
	}
	return nil
}

// Policy returns the modes the kernel holds for a workload, and whether it holds any.
func (d *Datapath) Policy(cookie uint64) (policy.Modes, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.modes[cookie]
	return policy.Modes{Default: m.Default, Ports: maps.Clone(m.Ports)}, ok, nil
}

// SetPolicy writes the modes of a workload. At no moment does a port have a mode that neither the old nor the new
// policy gives it. If it cannot be written whole, the workload is made STRICT and the error says so.
func (d *Datapath) SetPolicy(cookie uint64, m policy.Modes) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := policy.Modes{Default: m.ForPort(0), Ports: map[uint16]policy.Mode{}}
	for port := range m.Ports {
		if port != 0 {
			next.Ports[port] = m.ForPort(port)
		}
	}
	before := d.modes[cookie]
	if err := d.writeModes(cookie, before, next); err != nil {
		return errors.Join(
			fmt.Errorf("modes of workload %d cannot be written, it is STRICT now: %w", cookie, err),
			d.failClosed(cookie, before, next))
	}
	d.modes[cookie] = next
	return nil
}

// writeModes writes ports, then the default, then removes ports: a port that gets or loses an entry of its own never
// falls back to a default that is not meant for it.
func (d *Datapath) writeModes(cookie uint64, before, next policy.Modes) error {
	for port, mode := range next.Ports {
		if old, ok := before.Ports[port]; ok && old == mode {
			continue
		}
		if err := d.maps.Modes.Update(modeKey(cookie, port), uint32(mode), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
	}
	if err := d.maps.Modes.Update(modeKey(cookie, 0), uint32(next.Default), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("default: %w", err)
	}
	for port := range before.Ports {
		if _, ok := next.Ports[port]; ok {
			continue
		}
		if err := d.deleteMode(cookie, port); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) deleteMode(cookie uint64, port uint16) error {
	err := d.maps.Modes.Delete(modeKey(cookie, port))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove mode of port %d: %w", port, err)
	}
	return nil
}

// failClosed leaves the workload STRICT on every port. Without room for a default none is needed: no entry is STRICT.
func (d *Datapath) failClosed(cookie uint64, before, next policy.Modes) error {
	var errs []error
	if err := d.maps.Modes.Update(modeKey(cookie, 0), uint32(policy.Strict), ebpf.UpdateAny); err != nil {
		errs = append(errs, d.deleteMode(cookie, 0))
	}
	for _, ports := range []map[uint16]policy.Mode{before.Ports, next.Ports} {
		for port := range ports {
			errs = append(errs, d.deleteMode(cookie, port))
		}
	}
	d.modes[cookie] = policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{}}
	return errors.Join(errs...)
}

func (d *Datapath) forgetModes(cookie uint64) error {
	errs := []error{}
	for port := range d.modes[cookie].Ports {
		errs = append(errs, d.deleteMode(cookie, port))
	}
	errs = append(errs, d.deleteMode(cookie, 0))
	delete(d.modes, cookie)
	return errors.Join(errs...)
}
