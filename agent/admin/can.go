package admin

import (
	"context"
	"net/http"
	"slices"
	"time"
)

const (
	pathCan    = "/v1/can"
	canTimeout = callTimeout + 5*time.Second

	// Outside is the client of a Question that is in no mesh: somewhere off this node, or, when it is tried, this node
	// itself.
	Outside = "outside"
)

// CanNode foretells connections.
type CanNode interface {
	// Can tells what would become of a connection, and tries it where it is asked to. From is a pod of this node, or
	// Outside. A pod or Service that does not exist is ErrUnknownWorkload.
	Can(ctx context.Context, q Question) (*Verdict, error)
}

// Question is about one connection.
type Question struct {
	From string `json:"from"` // "namespace/pod" or Outside
	To   string `json:"to"`   // "namespace/name"
	// Service says that To is a Service, and not a pod.
	Service bool   `json:"service,omitempty"`
	Port    string `json:"port,omitempty"` // number or name; empty: the only one that there is
	Try     bool   `json:"try,omitempty"`
}

// Outcome is what becomes of a connection.
type Outcome string

// The outcomes.
const (
	OutcomeMTLS      Outcome = "mtls"
	OutcomePlaintext Outcome = "plaintext"
	OutcomeRefused   Outcome = "refused"
	OutcomeMixed     Outcome = "mixed" // it depends on the endpoint
)

// Verdict is what would become of a connection, and why.
type Verdict struct {
	Answer
	Node         string            `json:"node"`
	From         string            `json:"from"`
	FromIdentity string            `json:"fromIdentity,omitempty"`
	FromEnrolled bool              `json:"fromEnrolled"`
	FromReason   string            `json:"fromReason"` // why it is enrolled, or why not
	To           string            `json:"to"`
	Service      bool              `json:"service,omitempty"`
	Address      string            `json:"address"` // address:port that the client connects to
	Outcome      Outcome           `json:"outcome"`
	Reason       string            `json:"reason"`
	Endpoints    []EndpointVerdict `json:"endpoints"`
	Warnings     []string          `json:"warnings"`
	Tried        *Trial            `json:"tried,omitempty"`
}

// The sides of a connection.
const (
	SideClient = "client"
	SideServer = "server"
)

// EndpointVerdict is what would become of a connection that leads to this endpoint.
type EndpointVerdict struct {
	Address   string  `json:"address"`
	Pod       string  `json:"pod,omitempty"`
	Node      string  `json:"node,omitempty"`
	Outcome   Outcome `json:"outcome"`
	RefusedBy string  `json:"refusedBy,omitempty"` // SideClient or SideServer
	Identity  string  `json:"identity,omitempty"`  // that it must prove
	InMesh    bool    `json:"inMesh"`
	// SameNode says that both are of this node: tunnels may join them without TLS, after they checked the identities.
	SameNode bool   `json:"sameNode,omitempty"`
	Mode     string `json:"mode,omitempty"` // of its port, where it is in the mesh
	Client   string `json:"client"`         // what decides for the client
	Server   string `json:"server"`         // what decides for the server
}

// TrialOutcome is what came of trying.
type TrialOutcome string

// What came of trying.
const (
	TrialConnected TrialOutcome = "connected" // and it stayed open for as long as it was watched
	TrialClosed    TrialOutcome = "closed"    // connected, and ended by the other side in order
	TrialReset     TrialOutcome = "reset"     // connected, and broken off
	TrialRefused   TrialOutcome = "refused"
	TrialTimeout   TrialOutcome = "timeout"
	TrialFailed    TrialOutcome = "failed" // in another way
)

// Trial is a connection that was made for real.
type Trial struct {
	Outcome TrialOutcome  `json:"outcome"`
	Address string        `json:"address"`
	Local   string        `json:"local,omitempty"`
	Error   string        `json:"error,omitempty"`
	Connect time.Duration `json:"connectNanoseconds,omitempty"`
	Watched time.Duration `json:"watchedNanoseconds,omitempty"`
	// Carried and Reason are what the agent of that node has seen of it; empty: nothing, or not all of its way.
	Carried string `json:"carried,omitempty"`
	Reason  string `json:"reason,omitempty"`
	// AsForetold is false where the trial contradicts the verdict; Difference says in which way.
	AsForetold bool   `json:"asForetold"`
	Difference string `json:"difference,omitempty"`
}

// Works reports whether the connection was made, and not broken off.
func (t *Trial) Works() bool { return t.Outcome == TrialConnected || t.Outcome == TrialClosed }

// OK reports whether the connection is possible, to all endpoints, and whether it was, in the way foretold, where it was
// tried.
func (v *Verdict) OK() bool {
	if v.Tried != nil && !(v.Tried.Works() && v.Tried.AsForetold) {
		return false
	}
	switch v.Outcome {
	case OutcomeMTLS, OutcomePlaintext:
		return true
	case OutcomeMixed:
		return !slices.ContainsFunc(v.Endpoints, func(e EndpointVerdict) bool { return e.Outcome == OutcomeRefused })
	}
	return false
}

// registerCan adds the call to the server's table.
func registerCan(mux *http.ServeMux, s *server, node CanNode) {
	mux.Handle("POST "+pathCan, handle(s, func(ctx context.Context, q Question) (*Verdict, error) {
		if q.From == "" || q.To == "" {
			return nil, errBadRequest("from and to are missing")
		}
		v, err := node.Can(ctx, q)
		if err == nil {
			v.Answer = s.answer()
		}
		return v, err
	}))
}

// Can implements CanNode.
func (c *Client) Can(ctx context.Context, q Question) (*Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, canTimeout)
	defer cancel()
	out := &Verdict{}
	return out, c.call(ctx, http.MethodPost, pathCan, q, out)
}
