package datapath

import (
	"log/slog"
	"net/netip"
	"os"
)

// Options say where the datapath keeps its things.
type Options struct {
	// BPFFS is a directory on a BPF file system, made if it is missing; below /sys/fs/bpf the file system is
	// mounted if it is missing too. Everything of ours is pinned below one folder of it, BPFFS/v2.
	BPFFS string
	// Cgroup is the cgroup2 directory whose processes are governed: the node's root. Empty: where cgroup2 is mounted.
	Cgroup string
	// Logger receives what an operator should know; nil discards it.
	Logger *slog.Logger
}

// Workload is one pod of this node.
type Workload struct {
	// Cookie is the network namespace's cookie (SO_NETNS_COOKIE): the key of everything.
	Cookie uint64
	// Netns is the pod's network namespace. It is only read and stays the caller's.
	Netns *os.File
	// IPv4 and IPv6 are the pod's addresses; one of them may be invalid.
	IPv4, IPv6 netip.Addr
	// Interface is the pod's side of its link. Empty: the one that carries the address.
	Interface string
}

// ListenerSlot names what a listener of a pod is for.
type ListenerSlot uint32

// The listeners of a pod.
const (
	OutboundIPv4 ListenerSlot = iota
	OutboundIPv6
	HBONEIPv4
	HBONEIPv6
)

// Refusal is one plaintext SYN that a STRICT port refused.
type Refusal struct {
	Cookie              uint64
	Source, Destination netip.AddrPort
	// Suppressed is how many refusals went unreported before this one, on the same CPU.
	Suppressed uint64
}

// PlaintextCount tells how often a peer opened a plaintext connection to a workload's port.
type PlaintextCount struct {
	Cookie uint64
	Port   uint16
	Peer   netip.Addr
	Count  uint64
	// LastNanoseconds is the time of the last one on the kernel's monotonic clock.
	LastNanoseconds uint64
}

// Feature is one thing the kernel must be able to do.
type Feature struct {
	Name string
	// Err is nil if the kernel has it.
	Err error
	// Needed says since which kernel it exists and what it is for.
	Needed string
	// Optional features are not needed to run: something small works less well without them.
	Optional bool
}
