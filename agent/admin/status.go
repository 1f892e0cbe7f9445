package admin

import (
	"context"
	"net/http"
	"time"
)

const (
	pathStatus    = "/v1/status"
	statusTimeout = 20 * time.Second
)

// StatusNode tells how the node stands.
type StatusNode interface {
	// Status returns how everything stands. With foreign it also looks for programs of others on the same hooks.
	Status(ctx context.Context, foreign bool) (*Status, error)
}

// Status is how a node stands.
type Status struct {
	Answer
	Node         string            `json:"node"`
	Started      time.Time         `json:"started,omitzero"` // of the agent
	Ready        bool              `json:"ready"`            // what the source tells is in force
	Source       SourceStatus      `json:"source"`
	Tunnels      []TunnelStatus    `json:"tunnels"`
	Workloads    WorkloadStatus    `json:"workloads"`
	Certificates CertificateStatus `json:"certificates"`
	Kernel       KernelStatus      `json:"kernel"`
	Maps         []MapStatus       `json:"maps"`
	Counters     map[string]uint64 `json:"counters"` // of the kernel's programs, since they were first installed
	// Foreign are programs of others on our hooks; nil when they were not looked for.
	Foreign []ForeignProgram `json:"foreign,omitzero"`
	// Problems say in words what is wrong, the worst first. A node without any is healthy.
	Problems []string `json:"problems"`
}

// SourceStatus is how current the agent's knowledge of the cluster is.
type SourceStatus struct {
	Generation uint64 `json:"generation"` // how many states were applied
	Pods       int    `json:"pods"`       // of all nodes
	// Stale says what is not up to date, and since when.
	Stale []string `json:"stale,omitempty"`
	// Rejected are objects that cannot be used, the first of RejectedCount.
	Rejected      []string `json:"rejected,omitempty"`
	RejectedCount int      `json:"rejectedCount"`
}

// VersionUnknown stands for the version of a tunnel that does not tell it.
const VersionUnknown = "unknown"

// TunnelStatus is one tunnel that is connected to the agent.
type TunnelStatus struct {
	Version        string    `json:"version,omitempty"` // as it says itself; VersionUnknown: it is older than this field
	ConnectedSince time.Time `json:"connectedSince,omitzero"`
	Skew           string    `json:"skew,omitempty"` // from the agent's version, in words
}

// WorkloadStatus counts the node's pods.
type WorkloadStatus struct {
	Enrolled    int           `json:"enrolled"`
	NotEnrolled []ReasonCount `json:"notEnrolled,omitempty"` // by reason, most first
	// Failing are pods that are to be enrolled and are not, the first of FailingCount.
	Failing      []WorkloadProblem `json:"failing,omitempty"`
	FailingCount int               `json:"failingCount"`
}

// NotEnrolledCount is how many pods are not enrolled.
func (w *WorkloadStatus) NotEnrolledCount() int {
	n := 0
	for _, r := range w.NotEnrolled {
		n += r.Count
	}
	return n
}

// ReasonCount is how many pods have the same reason.
type ReasonCount struct {
	Reason string `json:"reason"`
	Count  int    `json:"count"`
}

// WorkloadProblem is what is wrong with one pod.
type WorkloadProblem struct {
	Workload string `json:"workload"` // "namespace/pod"
	Problem  string `json:"problem"`
}

// CertificateStatus counts the identities in use on the node.
type CertificateStatus struct {
	Source     string     `json:"source"`
	Total      int        `json:"total"`
	Missing    int        `json:"missing"` // have none yet
	Expired    int        `json:"expired"`
	Failing    int        `json:"failing"` // the last attempt to get one did
	NextExpiry *time.Time `json:"nextExpiry,omitempty"`
	LastError  string     `json:"lastError,omitempty"`
}

// KernelStatus is what the node runs on.
type KernelStatus struct {
	Release string           `json:"release"`
	Missing []MissingFeature `json:"missing,omitempty"`
}

// MissingFeature is what a kernel cannot do.
type MissingFeature struct {
	Name     string `json:"name"`
	Needed   string `json:"needed"` // since which kernel it exists, and what it is for
	Optional bool   `json:"optional,omitempty"`
	Error    string `json:"error"`
}

// MapStatus is how full a map of the kernel is.
type MapStatus struct {
	Name       string `json:"name"`
	Entries    int    `json:"entries"`
	MaxEntries int    `json:"maxEntries"`
	// Recycles says that the oldest entry makes room for a new one: then being full is no trouble.
	Recycles bool `json:"recycles,omitempty"`
}

// ForeignProgram is a BPF program of somebody else on one of our hooks.
type ForeignProgram struct {
	Hook     string `json:"hook"`
	Workload string `json:"workload,omitempty"` // "namespace/pod"; empty: the node's own hooks
	ID       uint32 `json:"id"`
	Name     string `json:"name"`
}

// statusRequest is the body of pathStatus.
type statusRequest struct {
	Foreign bool `json:"foreign,omitempty"`
}

// registerStatus adds the call to the server's table.
func registerStatus(mux *http.ServeMux, s *server, node StatusNode) {
	mux.Handle("POST "+pathStatus, handle(s, func(ctx context.Context, r statusRequest) (*Status, error) {
		status, err := node.Status(ctx, r.Foreign)
		if err == nil {
			status.Answer = s.answer()
		}
		return status, err
	}))
}

// Status implements StatusNode.
func (c *Client) Status(ctx context.Context, foreign bool) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	out := &Status{}
	return out, c.call(ctx, http.MethodPost, pathStatus, statusRequest{foreign}, out)
}
