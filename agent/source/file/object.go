package file

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

// The kinds that are read; all others are counted.
const (
	kindNamespace = "Namespace"
	kindPod       = "Pod"
	kindService   = "Service"
	kindPolicy    = "PeerAuthentication"
	kindRule      = "DestinationRule"
)

type objectID struct{ kind, namespace, name string }

// String is the object as messages name it: "PeerAuthentication default/strict", "Namespace default".
func (id objectID) String() string {
	switch {
	case id.name == "":
		return id.kind
	case id.namespace == "":
		return id.kind + " " + id.name
	}
	return id.kind + " " + id.namespace + "/" + id.name
}

type place struct {
	file           string
	document, line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// object is one good object. It has exactly one of the five forms, and is never changed.
type object struct {
	id        objectID
	place     place
	namespace *source.Namespace
	pod       *pod
	service   *service
	policy    *policy.PeerAuthentication
	rule      *policy.DestinationRule
}

// broken is a document, or an item of a list, that could not be used.
type broken struct {
	id     objectID // as far as it could be read
	errs   []*Error
	policy bool // it is, or may be, a PeerAuthentication
	// namespace is where it stands if that could be read, else "".
	namespace string
	// anonymous: it cannot be told which object this is.
	anonymous bool
	// whole: it is a file that could not be read, with any number of objects.
	whole bool
	// repeated: the object itself is good, but it stands in another place already.
	repeated bool
}

// parsed is what a file holds, in its order.
type parsed struct {
	objects []*object
	broken  []*broken
	skipped map[string]int
}

// header is what all kinds have in common.
type header struct {
	id          objectID
	labels      map[string]string
	annotations map[string]string
	created     time.Time
}

// reader returns how to read a kind, or why not: nil without an error means "passed over".
func reader(group, version, kind string) (func(*object, header, *yaml.Node) []fieldError, error) {
	versions := func(known ...string) error {
		for _, k := range known {
			if k == version {
				return nil
			}
		}
		return fmt.Errorf("version %q of %s is not known, only %s", version, kind, strings.Join(known, ", "))
	}
	switch {
	case group == "" && kind == kindNamespace:
		return readNamespace, versions("v1")
	case group == "" && kind == kindPod:
		return readPod, versions("v1")
	case group == "" && kind == kindService:
		return readService, versions("v1")
	case group == "security.istio.io" && kind == kindPolicy:
		return readPolicy, versions("v1", "v1beta1")
	case group == "networking.istio.io" && kind == kindRule:
		return readRule, versions("v1", "v1beta1", "v1alpha3")
	case group == "security.istio.io" && kind != "AuthorizationPolicy" && kind != "RequestAuthentication":
		return nil, fmt.Errorf("%q is no kind of security.istio.io; was PeerAuthentication meant?", kind)
	case group == "" && kind == kindPolicy:
		return nil, errors.New("a PeerAuthentication belongs to security.istio.io/v1")
	}
	return nil, nil
}

// readObject reads one manifest, or the items of a list.
func (p *parsed) readObject(n *yaml.Node, at place, inherited string, depth int) {
	at.line = n.Line
	if n.Kind != yaml.MappingNode {
		p.refuse(at, &broken{policy: true, anonymous: true}, fieldErrorf(n, "", "a manifest must be a mapping, not %s", describe(n)))
		return
	}
	if f := duplicateKey(n, ""); f != nil {
		p.refuse(at, guess(n), *f)
		return
	}
	apiVersion, kind := get(n, "apiVersion"), get(n, "kind")
	listVersion, listKind, isItem := strings.Cut(inherited, " ")
	if apiVersion == nil && kind == nil && isItem && listKind != "" {
		apiVersion = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: listVersion}
		kind = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: listKind}
	}
	for _, f := range []struct {
		name string
		node *yaml.Node
	}{{"apiVersion", apiVersion}, {"kind", kind}} {
		if f.node == nil || !isString(f.node) || f.node.Value == "" {
			p.refuse(at, guess(n), fieldErrorf(n, f.name, "missing: without it, it cannot be told what this is"))
			return
		}
	}
	if items, ok := strings.CutSuffix(kind.Value, "List"); ok {
		p.readList(n, at, apiVersion.Value+" "+items, depth)
		return
	}
	p.readKind(n, at, apiVersion.Value, kind)
}

func (p *parsed) readList(n *yaml.Node, at place, inherited string, depth int) {
	items := get(n, "items")
	if items == nil {
		return
	}
	if items.Kind != yaml.SequenceNode || depth > 3 {
		p.refuse(at, &broken{policy: true, anonymous: true}, fieldErrorf(items, "items", "must be a list of objects"))
		return
	}
	for _, item := range items.Content {
		p.readObject(item, at, inherited, depth+1)
	}
}

func (p *parsed) readKind(n *yaml.Node, at place, apiVersion string, kind *yaml.Node) {
	group, version, ok := strings.Cut(apiVersion, "/")
	if !ok {
		group, version = "", apiVersion
	}
	read, err := reader(group, version, kind.Value)
	if err != nil {
		b := guess(n)
		b.policy = read == nil || kind.Value == kindPolicy
		field := "apiVersion"
		if read == nil {
			field = "kind"
		}
		p.refuse(at, b, fieldError{kind.Line, field, err})
		return
	}
	if read == nil {
		p.add(passedOver(group, kind.Value), 1)
		return
	}
	h, errs := readHeader(n, kind.Value)
	o := &object{id: h.id, place: at}
	if len(errs) == 0 {
		errs = read(o, h, n)
	}
	if len(errs) > 0 {
		p.refuse(at, guess(n), errs...)
		return
	}
	p.objects = append(p.objects, o)
}

// passedOver names a kind in the count; one that only shares its name with ours gets its group.
func passedOver(group, kind string) string {
	switch kind {
	case kindNamespace, kindPod, kindService, kindPolicy, kindRule:
		return kind + "." + group
	}
	return kind
}

// guess identifies a broken object as well as it can be.
func guess(n *yaml.Node) *broken {
	text := func(n *yaml.Node) string {
		if n == nil || !isString(n) {
			return ""
		}
		return n.Value
	}
	meta := get(n, "metadata")
	b := &broken{id: objectID{kind: text(get(n, "kind")), name: text(get(meta, "name"))}}
	b.namespace = text(get(meta, "namespace"))
	if meta != nil && meta.Kind == yaml.MappingNode && get(meta, "namespace") == nil && unknownMetadata(meta) == nil {
		b.namespace = "default"
	}
	if b.id.kind != kindNamespace {
		b.id.namespace = b.namespace
	}
	b.policy = b.id.kind == "" || b.id.kind == kindPolicy
	b.anonymous = b.id.kind == "" || b.id.name == "" || (b.id.kind != kindNamespace && b.namespace == "")
	return b
}

func (p *parsed) refuse(at place, b *broken, errs ...fieldError) {
	for _, f := range errs {
		b.errs = append(b.errs, &Error{
			File: at.file, Document: at.document, Line: max(f.line, 1), Field: f.field, Object: b.id.String(), Err: f.err,
		})
	}
	p.broken = append(p.broken, b)
}

func readHeader(n *yaml.Node, kind string) (header, []fieldError) {
	h := header{id: objectID{kind: kind}}
	meta := get(n, "metadata")
	if meta == nil || meta.Kind != yaml.MappingNode {
		return h, []fieldError{fieldErrorf(n, "metadata", "missing, or not a mapping")}
	}
	if f := duplicateKey(meta, "metadata"); f != nil {
		return h, []fieldError{*f}
	}
	var errs []fieldError
	text := func(key string) string {
		v := get(meta, key)
		if v == nil {
			return ""
		}
		if !isString(v) {
			errs = append(errs, fieldErrorf(v, "metadata."+key, "must be a string, not %s", describe(v)))
		}
		return v.Value
	}
	h.id.name = text("name")
	if kind != kindNamespace {
		if h.id.namespace = text("namespace"); h.id.namespace == "" {
			h.id.namespace = "default"
		}
	}
	if len(errs) == 0 {
		errs = checkNames(meta, h.id)
	}
	var err error
	if created := text("creationTimestamp"); created != "" {
		if h.created, err = time.Parse(time.RFC3339, created); err != nil {
			errs = append(errs, fieldErrorf(get(meta, "creationTimestamp"), "metadata.creationTimestamp", "not a time: %w", err))
		}
	}
	var more []fieldError
	h.labels, more = stringMap(get(meta, "labels"), "metadata.labels")
	errs = append(errs, more...)
	h.annotations, more = stringMap(get(meta, "annotations"), "metadata.annotations")
	return h, append(errs, more...)
}

func checkNames(meta *yaml.Node, id objectID) []fieldError {
	var errs []fieldError
	if id.name == "" {
		return []fieldError{fieldErrorf(meta, "metadata.name", "missing")}
	}
	if len(validation.IsDNS1123Subdomain(id.name)) > 0 {
		errs = append(errs, fieldErrorf(get(meta, "name"), "metadata.name", "%q is no name: use lower case letters, digits, '-' and '.'", id.name))
	}
	if v := get(meta, "namespace"); v != nil && len(validation.IsDNS1123Label(id.namespace)) > 0 && id.kind != kindNamespace {
		errs = append(errs, fieldErrorf(v, "metadata.namespace", "%q is no name of a namespace", id.namespace))
	}
	return errs
}

func stringMap(n *yaml.Node, path string) (map[string]string, []fieldError) {
	if n == nil {
		return nil, nil
	}
	if n.Kind != yaml.MappingNode {
		return nil, []fieldError{fieldErrorf(n, path, "must be a mapping, not %s", describe(n))}
	}
	if f := duplicateKey(n, path); f != nil {
		return nil, []fieldError{*f}
	}
	var errs []fieldError
	m := make(map[string]string, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !isString(value) && !isNull(value) {
			errs = append(errs, fieldErrorf(value, join(path, key.Value), "must be a string, not %s: put it in quotes", describe(value)))
			continue
		}
		if m[key.Value] = value.Value; isNull(value) {
			m[key.Value] = ""
		}
	}
	return m, errs
}
