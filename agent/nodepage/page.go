// Package nodepage is the page that an agent shows of its node: workloads, who talks to whom, certificates, refusals and
// the health of both processes. It is read only, needs nothing from elsewhere, and works without its script, which does
// no more than fetch anew what has changed.
//
// The script asks every two seconds rather than hold a stream open: a browser has six connections to a host, and
// a seventh page with a stream would wait for ever. A page in the background asks for nothing.
package nodepage

import (
	"context"
	"time"
)

// Source tells how the node stands. Page is called at most once a second, however many look, never concurrently, and
// ends with its context. What it returns is not altered by either side afterwards.
type Source interface {
	Page(context.Context) (Page, error)
}

// Page is all that is shown. The order of a slice is kept, except that of Edges.
type Page struct {
	Node         string        `json:"node"`
	Version      string        `json:"version"`
	Time         time.Time     `json:"time"` // by the node's clock, which all others are compared with
	Agent        Agent         `json:"agent"`
	Tunnels      []Tunnel      `json:"tunnels"` // connected; empty: none
	Workloads    []Workload    `json:"workloads"`
	Certificates []Certificate `json:"certificates"`
	Edges        []Edge        `json:"edges"`
	Refusals     []Refusal     `json:"refusals"` // the latest first
}

// Agent is the health of the process that serves the page.
type Agent struct {
	Started time.Time `json:"started,omitzero"`
	Synced  bool      `json:"synced"` // the cluster's state was read once
	// Stale says what of the cluster's state may be outdated, and since when; empty while all of it is followed.
	Stale    []string `json:"stale,omitempty"`
	Problems []string `json:"problems,omitempty"` // each one a sentence
}

// Tunnel is a connected tunnel; more than one while one takes over from another.
type Tunnel struct {
	Version   string    `json:"version,omitempty"` // as it says itself
	Connected time.Time `json:"connected,omitzero"`
	FlowsLost uint64    `json:"flowsLost"` // which it had no room for, and so did not tell the agent of
	Problem   string    `json:"problem,omitempty"`
}

// Workload is a pod of this node.
type Workload struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Enrolled  bool   `json:"enrolled"`
	Failed    bool   `json:"failed,omitempty"` // it is to be enrolled and is not
	Why       string `json:"why,omitempty"`    // it is enrolled, or not
	Identity  string `json:"identity,omitempty"`
	Ports     []Port `json:"ports,omitempty"`
}

// Port is the effective mode of a port.
type Port struct {
	Port   uint16 `json:"port"`   // 0: all that are not named
	Mode   string `json:"mode"`   // as PeerAuthentication spells it
	Policy string `json:"policy"` // that decides: "namespace/name" or "default"
}

// Certificate is an identity in use, and the SVID that it has.
type Certificate struct {
	Identity  string    `json:"identity"`
	Source    string    `json:"source"`    // who issues it
	Workloads int       `json:"workloads"` // that use it
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"` // zero: there is none yet
	Error     string    `json:"error,omitempty"`   // of the last attempt to get one; empty when it succeeded
}

// Edge is who talks to whom, and how many connections went which way.
type Edge struct {
	From      string    `json:"from"` // "namespace/pod", or an address where the pod is not known
	To        string    `json:"to"`
	Port      uint16    `json:"port"`
	MTLS      uint64    `json:"mtls"`
	SameNode  uint64    `json:"sameNode"` // authorised as with mTLS, and never on a wire
	Plaintext uint64    `json:"plaintext"`
	Refused   uint64    `json:"refused"`
	Failed    uint64    `json:"failed"`
	Last      time.Time `json:"last"`
}

// Refusal is a connection that was turned away.
type Refusal struct {
	Time         time.Time `json:"time"`
	From         string    `json:"from"`
	FromIdentity string    `json:"fromIdentity,omitempty"`
	To           string    `json:"to"`
	Port         uint16    `json:"port"`
	Reason       string    `json:"reason"`
	Policy       string    `json:"policy,omitempty"`
	Suppressed   uint64    `json:"suppressed,omitempty"` // like it, that were not reported one by one
}
