package admin

import (
	"context"
	"net/http"
	"time"
)

const (
	pathDescribePod     = "/v1/describe/pod"
	pathDescribeService = "/v1/describe/service"
	describeTimeout     = 20 * time.Second
)

// DescribeNode tells of single pods and Services what the mesh makes of them. Both are asked for as "namespace/name"; one
// that does not exist is ErrUnknownWorkload, with those that may have been meant.
type DescribeNode interface {
	// DescribePod is for a pod of this node.
	DescribePod(ctx context.Context, pod string) (*PodDescription, error)
	// DescribeService is for any Service, as this node sees it.
	DescribeService(ctx context.Context, service string) (*ServiceDescription, error)
}

// PodDescription is all that the mesh makes of a pod.
type PodDescription struct {
	Answer
	Node           string   `json:"node"` // of the agent that answers, and of the pod
	Pod            string   `json:"pod"`
	ServiceAccount string   `json:"serviceAccount"`
	Addresses      []string `json:"addresses"`
	Enrolled       bool     `json:"enrolled"` // now
	Reason         string   `json:"reason"`   // why it is to be, or why not
	Identity       string   `json:"identity,omitempty"`
	Certificate    *SVID    `json:"certificate,omitempty"` // without its chain's DER; nil: none is in use
	CertSource     string   `json:"certificateSource,omitempty"`
	// Default holds for every port that is not in Ports. All of them are what the policies say; in an enrolled pod they
	// are in force, but for those with another InForce.
	Default PortDescription   `json:"default"`
	Ports   []PortDescription `json:"ports"`
	Levels  []PolicyLevel     `json:"levels"`
	// Ignored are policies of the root namespace that select the pod, where selectors have no meaning.
	Ignored  []string     `json:"ignored,omitempty"`
	Services []PodService `json:"services"`
	Warnings []string     `json:"warnings"`
	Lately   []RecentPeer `json:"lately,omitempty"`
}

// PortDescription is what holds for a container port.
type PortDescription struct {
	Port     uint16   `json:"port,omitempty"` // 0: all others
	Names    []string `json:"names,omitempty"`
	Declared bool     `json:"declared,omitempty"` // by a container
	Mode     string   `json:"mode"`
	Policy   string   `json:"policy"` // "namespace/name", or "default"
	// InForce is the mode that the kernel enforces, if it is another.
	InForce string `json:"inForce,omitempty"`
}

// PolicyLevel is who has a say on one level.
type PolicyLevel struct {
	Level       string   `json:"level"` // mesh, namespace or workload
	Winner      string   `json:"winner"`
	Mode        string   `json:"mode"` // the winner's own; UNSET leaves it to the weaker level
	Losers      []string `json:"losers,omitempty"`
	LosersCount int      `json:"losersCount"`
}

// PodService is a Service that leads to a pod.
type PodService struct {
	Service string           `json:"service"`
	Ports   []PodServicePort `json:"ports"`
}

// PodServicePort is a port of a Service that leads to a pod.
type PodServicePort struct {
	Port   uint16       `json:"port"`
	Target uint16       `json:"target"`
	Rules  []CallerRule `json:"rules,omitempty"`
}

// CallerRule is what a DestinationRule asks of callers.
type CallerRule struct {
	Callers string `json:"callers"` // whom it applies to, in words
	Rule    string `json:"rule"`    // "namespace/name"
	Action  string `json:"action"`
	Reason  string `json:"reason"`
}

// RecentPeer is who connected lately, and how.
type RecentPeer struct {
	Peer        string    `json:"peer"` // "namespace/pod", or an address
	Port        uint16    `json:"port"`
	Carried     string    `json:"carried"` // mtls, same-node, plaintext, refused or failed
	Connections uint64    `json:"connections"`
	Last        time.Time `json:"last"`
}

// ServiceDescription is what lies behind a Service.
type ServiceDescription struct {
	Answer
	Node      string                   `json:"node"` // of the agent that answers: endpoints may differ from node to node
	Service   string                   `json:"service"`
	Headless  bool                     `json:"headless,omitempty"`
	Addresses []string                 `json:"addresses"`
	External  []string                 `json:"external,omitempty"`
	Ports     []ServicePortDescription `json:"ports"`
	Warnings  []string                 `json:"warnings"`
}

// ServicePortDescription is one port of a Service.
type ServicePortDescription struct {
	Name           string                `json:"name,omitempty"`
	Port           uint16                `json:"port"`
	Target         string                `json:"target"`    // a number, or the name of a container port
	Endpoints      []EndpointDescription `json:"endpoints"` // the first of EndpointsCount
	EndpointsCount int                   `json:"endpointsCount"`
	InMesh         int                   `json:"inMesh"` // of all endpoints
	Rules          []CallerRule          `json:"rules,omitempty"`
}

// EndpointDescription is one ready endpoint.
type EndpointDescription struct {
	Address string `json:"address"` // address:port
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
	InMesh  bool   `json:"inMesh"`
	Mode    string `json:"mode"`
	Policy  string `json:"policy"`
}

// describeRequest is the body of both calls.
type describeRequest struct {
	Name string `json:"name"`
}

// registerDescribe adds the calls to the server's table.
func registerDescribe(mux *http.ServeMux, s *server, node DescribeNode) {
	mux.Handle("POST "+pathDescribePod, handle(s, func(ctx context.Context, r describeRequest) (*PodDescription, error) {
		if r.Name == "" {
			return nil, errBadRequest("name is missing")
		}
		d, err := node.DescribePod(ctx, r.Name)
		if err == nil {
			d.Answer = s.answer()
		}
		return d, err
	}))
	mux.Handle("POST "+pathDescribeService, handle(s, func(ctx context.Context, r describeRequest) (*ServiceDescription, error) {
		if r.Name == "" {
			return nil, errBadRequest("name is missing")
		}
		d, err := node.DescribeService(ctx, r.Name)
		if err == nil {
			d.Answer = s.answer()
		}
		return d, err
	}))
}

// DescribePod implements DescribeNode.
func (c *Client) DescribePod(ctx context.Context, pod string) (*PodDescription, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	out := &PodDescription{}
	return out, c.call(ctx, http.MethodPost, pathDescribePod, describeRequest{pod}, out)
}

// DescribeService implements DescribeNode.
func (c *Client) DescribeService(ctx context.Context, service string) (*ServiceDescription, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	out := &ServiceDescription{}
	return out, c.call(ctx, http.MethodPost, pathDescribeService, describeRequest{service}, out)
}
