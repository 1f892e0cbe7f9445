package istio

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// maxDepth is far more than either kind nests, and little enough to walk.
	maxDepth = 50
	// maxUnknown bounds how many unknown fields of one object are named.
	maxUnknown = 20
)

// checker walks JSON values beside the API's descriptor and notes each field that the API does not have, or has
// with another type. protojson would find the same, but stops at the first, and names no path.
type checker struct {
	// tolerant: fields that the API does not have are left out, and their paths noted, where they cannot change what
	// the rest means to this agent.
	tolerant bool
	unknown  []string
	errs     []FieldError
}

func (c *checker) errorf(path, format string, args ...any) {
	c.errs = append(c.errs, fieldErrorf(path, format, args...))
}

// wrong notes a value that is not what it must be.
func (c *checker) wrong(path, want string, v any) {
	c.errs = append(c.errs, FieldError{path, &WrongValue{"must be " + want + ", not ", "", v}})
}

// message returns the value without the fields that were left out.
func (c *checker) message(v any, md protoreflect.MessageDescriptor, path string, depth int) any {
	if c.wellKnown(v, md.FullName(), path) {
		return v
	}
	m, ok := v.(map[string]any)
	if !ok {
		c.wrong(path, "a mapping", v)
		return nil
	}
	if depth > maxDepth {
		c.errorf(path, "nested too deeply")
		return nil
	}
	kept := make(map[string]any, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		value, name := m[key], path+"."+key
		fd := md.Fields().ByJSONName(key)
		switch {
		case value == nil && (fd != nil || c.tolerant): // the same as absent
		case fd != nil:
			kept[key] = c.field(value, fd, name, depth+1)
		case c.tolerant && !decides(md.FullName()):
			if len(c.unknown) < maxUnknown {
				c.unknown = append(c.unknown, name)
			}
		default:
			c.errorf(name, "unknown field%s", similar(md, key))
		}
	}
	return kept
}

// decides tells the messages in which a field that is not understood could change what the others mean.
func decides(name protoreflect.FullName) bool {
	switch name.Name() {
	case "ClientTLSSettings", "PortSelector", "WorkloadSelector":
		return true
	}
	return false
}

// similar names the field that was probably meant: another case, or the name in the protobuf file.
func similar(md protoreflect.MessageDescriptor, name string) string {
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s)) }
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); plain(fd.JSONName()) == plain(name) {
			return ", did you mean " + fd.JSONName() + "?"
		}
	}
	return ""
}

func (c *checker) field(v any, fd protoreflect.FieldDescriptor, path string, depth int) any {
	switch {
	case fd.IsMap():
		return c.mapping(v, fd, path, depth)
	case fd.IsList():
		list, ok := v.([]any)
		if !ok {
			c.wrong(path, "a list", v)
			return nil
		}
		kept := make([]any, len(list))
		for i, child := range list {
			kept[i] = c.value(child, fd, path+"["+strconv.Itoa(i)+"]", depth)
		}
		return kept
	}
	return c.value(v, fd, path, depth)
}

func (c *checker) mapping(v any, fd protoreflect.FieldDescriptor, path string, depth int) any {
	m, ok := v.(map[string]any)
	if !ok {
		c.wrong(path, "a mapping", v)
		return nil
	}
	kept := make(map[string]any, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		name := path + "[" + key + "]"
		if fd.MapKey().Kind() != protoreflect.StringKind {
			if err := checkPortKey(key); err != nil {
				c.errs = append(c.errs, FieldError{name, err})
			}
		}
		kept[key] = c.value(m[key], fd.MapValue(), name, depth)
	}
	return kept
}

// checkPortKey looks at a key of portLevelMtls, the only map of the two kinds with numbers for keys.
func checkPortKey(key string) error {
	port, err := strconv.ParseInt(key, 10, 64)
	if err != nil || strconv.FormatInt(port, 10) != key {
		return fmt.Errorf("the port must be a whole number, not %q", key)
	}
	if port < 1 || port > math.MaxUint16 {
		return fmt.Errorf("port %s is not between 1 and 65535", key)
	}
	return nil
}

func (c *checker) value(v any, fd protoreflect.FieldDescriptor, path string, depth int) any {
	want := ""
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return c.message(v, fd.Message(), path, depth)
	case protoreflect.EnumKind:
		c.enum(v, fd.Enum(), path)
	case protoreflect.StringKind, protoreflect.BytesKind:
		want = need(isString(v), "a string")
	case protoreflect.BoolKind:
		want = need(isBool(v), "true or false")
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		want = need(isWhole(v, 0, math.MaxUint32), "a whole number from 0 on")
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		want = need(isWhole(v, 0, math.MaxInt64), "a whole number from 0 on")
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		want = need(isWhole(v, math.MinInt32, math.MaxInt32), "a whole number")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		want = need(isNumber(v), "a number")
	default:
		want = need(isWhole(v, math.MinInt64, math.MaxInt64), "a whole number")
	}
	if want != "" {
		c.wrong(path, want, v)
	}
	return v
}

func need(ok bool, want string) string {
	if ok {
		return ""
	}
	return want
}

func (c *checker) enum(v any, ed protoreflect.EnumDescriptor, path string) {
	if text, ok := v.(string); ok && ed.Values().ByName(protoreflect.Name(text)) != nil {
		return
	}
	names := make([]string, ed.Values().Len())
	for i := range names {
		names[i] = string(ed.Values().Get(i).Name())
	}
	c.errs = append(c.errs, FieldError{path, &WrongValue{"unknown value ", ", must be one of " + strings.Join(names, ", "), v}})
}

// wellKnown handles the messages that JSON writes as something else than a mapping.
func (c *checker) wellKnown(v any, name protoreflect.FullName, path string) bool {
	var ok bool
	var want string
	switch name {
	case "google.protobuf.Duration":
		ok, want = isDuration(v), `a duration in seconds such as "1.5s"`
	case "google.protobuf.BoolValue":
		ok, want = isBool(v), "true or false"
	case "google.protobuf.StringValue":
		ok, want = isString(v), "a string"
	case "google.protobuf.FloatValue", "google.protobuf.DoubleValue":
		ok, want = isNumber(v), "a number"
	case "google.protobuf.UInt32Value":
		ok, want = isWhole(v, 0, math.MaxUint32), "a whole number from 0 on"
	case "google.protobuf.Int32Value":
		ok, want = isWhole(v, math.MinInt32, math.MaxInt32), "a whole number"
	case "google.protobuf.UInt64Value", "google.protobuf.Int64Value":
		ok, want = isWhole(v, math.MinInt64, math.MaxInt64), "a whole number"
	default:
		// What else there is (Struct, Any) has no fixed shape, and no field of these two kinds has it today.
		return strings.HasPrefix(string(name), "google.protobuf.")
	}
	if !ok {
		c.wrong(path, want, v)
	}
	return true
}

func isDuration(v any) bool {
	text, ok := v.(string)
	var d durationpb.Duration
	return ok && protojson.Unmarshal([]byte(strconv.Quote(text)), &d) == nil
}

func isString(v any) bool { _, ok := v.(string); return ok }

func isBool(v any) bool { _, ok := v.(bool); return ok }

func isNumber(v any) bool {
	switch v.(type) {
	case int64, float64:
		return true
	}
	return false
}

func isWhole(v any, low, high int64) bool {
	i, ok := v.(int64)
	return ok && i >= low && i <= high
}
