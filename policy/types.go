package policy

import "time"

// DefaultRootNamespace is used where the root namespace is given as "".
const DefaultRootNamespace = "istio-system"

// DefaultClusterDomain is used where the cluster's DNS domain is given as "".
const DefaultClusterDomain = "cluster.local"

// Ref names an object in a namespace. The zero Ref stands for "no object": the built-in default.
type Ref struct{ Namespace, Name string }

// String is "namespace/name", or "default" for the zero Ref.
func (r Ref) String() string {
	if r == (Ref{}) {
		return "default"
	}
	return r.Namespace + "/" + r.Name
}

// MarshalText makes a Ref a plain string in JSON.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// PeerAuthentication is security.istio.io's object of that name, reduced to what decides.
type PeerAuthentication struct {
	Namespace, Name string
	// Created is compared in whole seconds. The zero time (a manifest that was not applied yet) counts
	// as newer than every real one.
	Created time.Time
	// SelectorPresent tells `selector: {}` from no selector at all: equal in effect, but a lint warning.
	SelectorPresent bool
	Selector        map[string]string
	Mode            Mode
	// Ports is portLevelMtls by container port: nil when absent, empty but not nil for `{}`.
	Ports map[uint16]Mode
}

// Ref is the policy's name.
func (p *PeerAuthentication) Ref() Ref { return Ref{p.Namespace, p.Name} }

// Workload is a pod as the policies see it.
type Workload struct {
	Namespace, Name string
	Labels          map[string]string
}

// Ref is the workload's name.
func (w Workload) Ref() Ref { return Ref{w.Namespace, w.Name} }

// PortDecision is what holds for one container port, and the policy that decided it.
type PortDecision struct {
	Mode   Mode `json:"mode"`
	Policy Ref  `json:"policy"`
}

// Decision is what holds for one workload. It is total: no Mode in it is ever Unset.
// Its map belongs to the Set and must not be changed.
type Decision struct {
	// Mode holds for every port that is not in Ports; Policy decided it.
	Mode   Mode
	Policy Ref
	// Ports has every port that the winning workload policy names, also those it leaves UNSET.
	Ports map[uint16]PortDecision
}

// Level is one of the three levels at which a policy can stand.
type Level uint8

// The levels, from the weakest to the strongest.
const (
	LevelMesh Level = iota + 1
	LevelNamespace
	LevelWorkload
)

// LevelDecision says which policy stands for a level. A level without a policy has no LevelDecision.
type LevelDecision struct {
	Level  Level
	Winner Ref
	// Mode is the winner's own, and may be Unset: then the winner changes nothing but its ports.
	Mode Mode
	// Losers are the other policies of the level that match, oldest first. They have no effect.
	// The slice belongs to the Set and must not be changed.
	Losers []Ref
}

// Explanation is a Decision with what led to it.
type Explanation struct {
	Decision
	// Levels has the winner of each level that has one: mesh, namespace, workload.
	Levels []LevelDecision
	// Ignored are policies of the root namespace that select this workload; a selector has no meaning there.
	Ignored []Ref
}

// Modes is a Decision without the names, ready to be compared and enforced. Read it with ForPort.
type Modes struct {
	Default Mode
	Ports   map[uint16]Mode
}

// TLSMode is the mode of a DestinationRule's tls settings.
type TLSMode uint8

// The modes of networking.istio.io. TLSUnset is a tls block without a mode: it says nothing.
const (
	TLSUnset TLSMode = iota
	TLSDisable
	TLSSimple
	TLSMutual
	TLSIstioMutual
)

// ClientTLS is a DestinationRule's ClientTLSSettings.
type ClientTLS struct {
	Mode                                                               TLSMode
	ClientCertificate, PrivateKey, CACertificates, CredentialName, SNI string
	SubjectAltNames                                                    []string
	InsecureSkipVerify                                                 bool
}

// DestinationRule is networking.istio.io's object of that name, reduced to what decides.
type DestinationRule struct {
	Namespace, Name string
	Created         time.Time // as in PeerAuthentication
	Host            string    // as written: a short name, a full name, or a wildcard
	TLS             *ClientTLS
	// PortTLS is portLevelSettings by Service port. A nil value is an entry without tls: such an entry
	// inherits nothing from TLS, so it says nothing.
	PortTLS map[uint16]*ClientTLS
	// Selector is workloadSelector.matchLabels: the clients that the rule is for.
	Selector map[string]string
	ExportTo []string
	// UnusedFields are the paths of fields that were accepted and have no effect, such as "spec.subsets".
	UnusedFields []string
}

// Ref is the rule's name.
func (r *DestinationRule) Ref() Ref { return Ref{r.Namespace, r.Name} }

// ClientAction is what a client does towards a Service.
type ClientAction uint8

const (
	// Auto: no rule says anything. mTLS if the peer is in the mesh and not DISABLE, else plaintext.
	Auto ClientAction = iota
	// Plaintext: never TLS, also towards a workload of the mesh.
	Plaintext
	// Mutual: mTLS with the workload's own identity, or no connection.
	Mutual
	// Originate: the agent itself originates the TLS that RuleDecision.TLS describes. A caller that cannot must refuse.
	Originate
)

// RuleDecision is what a client has to do, and why.
type RuleDecision struct {
	Client ClientAction
	Rule   Ref        // the rule that was chosen, also when it says nothing about TLS; zero when there is none
	TLS    *ClientTLS // the settings that decided, or nil
	Reason string
}

// Severity tells errors from warnings.
type Severity uint8

// An Error is not valid by the API; a Warning is valid, and probably not what was meant.
const (
	Error Severity = iota + 1
	Warning
)

// Finding is one remark about one object.
type Finding struct {
	Severity Severity `json:"severity"`
	Object   string   `json:"object"` // "PeerAuthentication ns/name"
	Field    string   `json:"field,omitempty"`
	Message  string   `json:"message"`
	Hint     string   `json:"hint,omitempty"`
}

// LintWorkload is a pod as the linter sees it.
type LintWorkload struct {
	Workload
	Enrolled bool
	Ports    []uint16 // the containers' declared ports, if known
}

// LintService is a Service as the linter sees it.
type LintService struct {
	Namespace, Name string
	// Selector chooses the workloads behind it; Workloads names them where they are known in another way.
	// The two add up; an empty Selector selects nothing.
	Selector  map[string]string
	Workloads []Ref
	Ports     map[uint16]uint16 // Service port -> container port
}

// Ref is the Service's name.
func (s *LintService) Ref() Ref { return Ref{s.Namespace, s.Name} }

// LintInput is all that Lint looks at. Without Workloads or Services it leaves out what needs them.
type LintInput struct {
	Root, ClusterDomain string
	Policies            []PeerAuthentication
	Rules               []DestinationRule
	Workloads           []LintWorkload
	Services            []LintService
}
