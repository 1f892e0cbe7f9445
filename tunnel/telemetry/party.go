package telemetry

import (
	"bytes"
	"strings"
)

const (
	// longestPrincipal and longestName bound what a peer of another trust domain, or an object, can have us remember.
	longestPrincipal = 512
	longestName      = 253

	unknownLabel = "unknown"
	// OtherLabel stands for the parties that found no room.
	OtherLabel = "other"
)

// Party is one end of a connection as labels tell it. What is empty is unknown.
type Party struct {
	Workload, Namespace, Principal string
	// Application and Revision are what Istio calls canonical service and revision, and app and version as well.
	Application, Revision string
	Cluster               string
	Service               Service
}

// Service is the one by which a destination was reached.
type Service struct{ Name, Namespace, Domain string }

// PartyOf reads a SPIFFE ID. The workload is the service account: nothing else is proved.
func PartyOf(identity string) Party {
	if len(identity) > longestPrincipal {
		return otherParty()
	}
	p := Party{Principal: identity}
	if _, path, ok := strings.Cut(identity, "/ns/"); ok {
		if namespace, account, ok := strings.Cut(path, "/sa/"); ok {
			p.Namespace, p.Workload, p.Application = namespace, account, account
		}
	}
	return p
}

func otherParty() Party {
	return Party{Workload: OtherLabel, Namespace: OtherLabel, Principal: OtherLabel, Application: OtherLabel, Revision: OtherLabel}
}

// Bounded is the party with its names cut. Whoever counts what others say has to ask for it: a Traffic keeps what it gets.
func (p Party) Bounded() Party {
	if len(p.Principal) > longestPrincipal {
		p.Principal = OtherLabel
	}
	for _, value := range p.values() {
		if value != &p.Principal && len(*value) > longestName {
			*value = strings.ToValidUTF8((*value)[:longestName], "")
		}
	}
	return p
}

const values = 7

// values are all but those that are the same for all parties of a mesh. The longest, which may contain others, is first.
func (p *Party) values() [values]*string {
	return [values]*string{&p.Principal, &p.Workload, &p.Application, &p.Namespace, &p.Revision, &p.Service.Name, &p.Service.Namespace}
}

// party is a Party that many series share.
type party struct {
	Party
	written *Party // as the text format wants it: the same unless a value has to be escaped
}

// newParty keeps one copy of what p says, which belongs to messages and certificates.
func newParty(p Party) *party {
	var text []byte
	var starts [values]int
	for i, value := range p.values() {
		if starts[i] = bytes.Index(text, []byte(*value)); starts[i] < 0 {
			starts[i] = len(text)
			text = append(text, *value...)
		}
	}
	own := &party{Party: p}
	own.written = &own.Party
	all := string(text)
	for i, value := range own.values() {
		*value = all[starts[i] : starts[i]+len(*value)]
	}
	if strings.ContainsAny(all+p.Cluster+p.Service.Domain, "\\\"\n") {
		own.written = own.escaped()
	}
	return own
}

func (p Party) escaped() *Party {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	p.Cluster, p.Service.Domain = escape.Replace(p.Cluster), escape.Replace(p.Service.Domain)
	for _, value := range p.values() {
		*value = escape.Replace(*value)
	}
	return &p
}

// appendSource writes the labels of where a connection comes from.
func (p *party) appendSource(b []byte) []byte {
	w := p.written
	application, revision := known(w.Application), known(w.Revision)
	b = append(append(b, `,source_workload="`...), known(w.Workload)...)
	b = append(append(b, `",source_canonical_service="`...), application...)
	b = append(append(b, `",source_canonical_revision="`...), revision...)
	b = append(append(b, `",source_workload_namespace="`...), known(w.Namespace)...)
	b = append(append(b, `",source_principal="`...), known(w.Principal)...)
	b = append(append(b, `",source_app="`...), application...)
	b = append(append(b, `",source_version="`...), revision...)
	b = append(append(b, `",source_cluster="`...), known(w.Cluster)...)
	return append(b, '"')
}

// appendDestination writes the labels of where a connection goes to.
func (p *party) appendDestination(b []byte) []byte {
	w := p.written
	application, revision := known(w.Application), known(w.Revision)
	b = append(b, `,destination_service="`...)
	if s := &w.Service; s.Name == "" {
		b = append(b, unknownLabel...)
	} else {
		b = append(append(append(b, s.Name...), '.'), s.Namespace...)
		b = append(append(b, ".svc."...), s.Domain...)
	}
	b = append(append(b, `",destination_service_namespace="`...), known(w.Service.Namespace)...)
	b = append(append(b, `",destination_service_name="`...), known(w.Service.Name)...)
	b = append(append(b, `",destination_workload="`...), known(w.Workload)...)
	b = append(append(b, `",destination_canonical_service="`...), application...)
	b = append(append(b, `",destination_canonical_revision="`...), revision...)
	b = append(append(b, `",destination_workload_namespace="`...), known(w.Namespace)...)
	b = append(append(b, `",destination_principal="`...), known(w.Principal)...)
	b = append(append(b, `",destination_app="`...), application...)
	b = append(append(b, `",destination_version="`...), revision...)
	b = append(append(b, `",destination_cluster="`...), known(w.Cluster)...)
	return append(b, '"')
}

func known(value string) string {
	if value == "" {
		return unknownLabel
	}
	return value
}
