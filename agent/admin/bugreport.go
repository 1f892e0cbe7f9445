package admin

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/agent/observe"
)

const pathBugreport = "/v1/bugreport"

// Reporter is the part of a Node that tells what is asked for when something is wrong.
type Reporter interface {
	Bugreport(ctx context.Context) (*Bugreport, error)
}

// Bugreport is the state of an agent that no other call tells. It has no secrets.
type Bugreport struct {
	Answer
	Node       string           `json:"node"`
	Workloads  []ReportWorkload `json:"workloads"`
	Snapshot   ReportSnapshot   `json:"snapshot"`
	Policies   []Policy         `json:"policies"`
	Rules      []ReportRule     `json:"destinationRules"`
	Tunnels    int              `json:"tunnels"` // connected
	Edges      []observe.Edge   `json:"edges"`
	LostEvents uint64           `json:"lostEvents"`
	// Counters are the kernel's, Maps how full its maps are.
	Counters map[string]uint64 `json:"counters,omitempty"`
	Maps     []MapFill         `json:"maps,omitempty"`
	Features []ReportFeature   `json:"kernelFeatures"`
	Errors   []string          `json:"errors,omitempty"` // what could not be found out
}

// MapFill is how full a map of the kernel is.
type MapFill struct {
	Map     string `json:"map"`
	Entries int    `json:"entries"`
	Max     int    `json:"max"`
}

// ReportWorkload is an enrolled pod.
type ReportWorkload struct {
	Pod       string            `json:"pod"`
	Cookie    uint64            `json:"cookie"`
	Identity  string            `json:"identity"`
	Addresses []netip.Addr      `json:"addresses"`
	Sandbox   string            `json:"sandbox,omitempty"`
	Mode      string            `json:"mode"` // that the kernel enforces
	Policy    string            `json:"policy"`
	Ports     map[uint16]string `json:"ports,omitempty"`
	Listeners int               `json:"listeners"`
}

// ReportSnapshot is what the agent knows of the cluster, in numbers.
type ReportSnapshot struct {
	Generation         uint64            `json:"generation"`
	Pods               int               `json:"pods"`
	Ranges             []netip.Prefix    `json:"ranges,omitempty"`
	Incomplete         bool              `json:"incomplete,omitempty"`
	Problems           []string          `json:"problems,omitempty"`
	UnreadablePolicies []string          `json:"unreadablePolicies,omitempty"`
	NotEnrolled        map[string]string `json:"notEnrolled,omitempty"` // pods of this node, and why
}

// ReportRule names a DestinationRule.
type ReportRule struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Host      string    `json:"host"`
	Created   time.Time `json:"created,omitzero"`
	TLS       string    `json:"tls,omitempty"`
}

// ReportFeature is something that the kernel must be able to do.
type ReportFeature struct {
	Name     string `json:"name"`
	Missing  string `json:"missing,omitempty"`
	Needed   string `json:"needed"`
	Optional bool   `json:"optional,omitempty"`
}

// Bugreport implements Reporter.
func (c *Client) Bugreport(ctx context.Context) (*Bugreport, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	out := &Bugreport{}
	return out, c.call(ctx, http.MethodGet, pathBugreport, nil, out)
}

// registerBugreport adds the call.
func registerBugreport(mux *http.ServeMux, s *server, node Reporter) {
	mux.Handle("GET "+pathBugreport, handle(s, func(ctx context.Context, _ struct{}) (*Bugreport, error) {
		r, err := node.Bugreport(ctx)
		if err == nil {
			r.Answer = s.answer()
		}
		return r, err
	}))
}
