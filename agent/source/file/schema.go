package file

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// checkMessage walks a YAML tree beside the API's own descriptor and reports each field that the API does
// not have, or has with another type. protojson would find the same, but stops at the first and knows no lines.
func checkMessage(n *yaml.Node, md protoreflect.MessageDescriptor, path string) []fieldError {
	if check, ok := wellKnown(md.FullName()); ok {
		return check(n, path)
	}
	if n.Kind != yaml.MappingNode {
		return []fieldError{fieldErrorf(n, path, "must be a mapping, not %s", describe(n))}
	}
	if f := duplicateKey(n, path); f != nil {
		return []fieldError{*f}
	}
	var errs []fieldError
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := join(path, key.Value)
		fd := md.Fields().ByJSONName(key.Value)
		switch {
		case fd == nil:
			errs = append(errs, fieldErrorf(key, name, "unknown field%s", similar(md, key.Value)))
		case isNull(value): // the same as absent
		default:
			errs = append(errs, checkField(value, fd, name)...)
		}
	}
	return errs
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

func checkField(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) []fieldError {
	switch {
	case fd.IsMap():
		return checkMap(n, fd, path)
	case fd.IsList():
		if n.Kind != yaml.SequenceNode {
			return []fieldError{fieldErrorf(n, path, "must be a list, not %s", describe(n))}
		}
		var errs []fieldError
		for i, child := range n.Content {
			errs = append(errs, checkValue(child, fd, path+"["+strconv.Itoa(i)+"]")...)
		}
		return errs
	}
	return checkValue(n, fd, path)
}

func checkMap(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) []fieldError {
	if n.Kind != yaml.MappingNode {
		return []fieldError{fieldErrorf(n, path, "must be a mapping, not %s", describe(n))}
	}
	if f := duplicateKey(n, path); f != nil {
		return []fieldError{*f}
	}
	var errs []fieldError
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := path + "[" + key.Value + "]"
		if fd.MapKey().Kind() == protoreflect.StringKind {
			if !isString(key) {
				errs = append(errs, fieldErrorf(key, name, "the key must be a string, not %s", describe(key)))
			}
		} else if err := checkPortKey(key); err != nil {
			errs = append(errs, fieldError{key.Line, name, err})
		}
		errs = append(errs, checkValue(value, fd.MapValue(), name)...)
	}
	return errs
}

// checkPortKey looks at a key of portLevelMtls, the only map of the two kinds with numbers for keys.
func checkPortKey(key *yaml.Node) error {
	text := keyText(key)
	port, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(port, 10) != text {
		return fmt.Errorf("the port must be a whole number, not %s", describe(key))
	}
	if port < 1 || port > math.MaxUint16 {
		return fmt.Errorf("port %s is not between 1 and 65535", text)
	}
	return nil
}

func checkValue(n *yaml.Node, fd protoreflect.FieldDescriptor, path string) []fieldError {
	one := func(ok bool, want string) []fieldError {
		if ok {
			return nil
		}
		return []fieldError{fieldErrorf(n, path, "must be %s, not %s", want, describe(n))}
	}
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return checkMessage(n, fd.Message(), path)
	case protoreflect.EnumKind:
		return checkEnum(n, fd.Enum(), path)
	case protoreflect.StringKind, protoreflect.BytesKind:
		return one(isString(n), "a string")
	case protoreflect.BoolKind:
		return one(isBool(n), "true or false")
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return one(isWhole(n, 0, limit(fd.Kind())), "a whole number from 0 on")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return one(isNumber(n), "a number")
	}
	return one(isWhole(n, -limit(fd.Kind())-1, limit(fd.Kind())), "a whole number")
}

func limit(k protoreflect.Kind) int64 {
	switch k {
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return math.MaxUint32
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return math.MaxInt32
	}
	return math.MaxInt64
}

func checkEnum(n *yaml.Node, ed protoreflect.EnumDescriptor, path string) []fieldError {
	if isString(n) && ed.Values().ByName(protoreflect.Name(n.Value)) != nil {
		return nil
	}
	names := make([]string, ed.Values().Len())
	for i := range names {
		names[i] = string(ed.Values().Get(i).Name())
	}
	return []fieldError{fieldErrorf(n, path, "unknown value %s, must be one of %s", describe(n), strings.Join(names, ", "))}
}

func isBool(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && tag(n) == "!!bool" }

func isNumber(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && (tag(n) == "!!int" || tag(n) == "!!float")
}

func isWhole(n *yaml.Node, low, high int64) bool {
	var i int64
	return n.Kind == yaml.ScalarNode && tag(n) == "!!int" && n.Decode(&i) == nil && i >= low && i <= high
}

// wellKnown has the messages that JSON writes as something else than a mapping.
func wellKnown(name protoreflect.FullName) (func(*yaml.Node, string) []fieldError, bool) {
	scalar := func(ok func(*yaml.Node) bool, want string) func(*yaml.Node, string) []fieldError {
		return func(n *yaml.Node, path string) []fieldError {
			if ok(n) {
				return nil
			}
			return []fieldError{fieldErrorf(n, path, "must be %s, not %s", want, describe(n))}
		}
	}
	switch name {
	case "google.protobuf.Duration":
		return scalar(isDuration, `a duration in seconds such as "1.5s"`), true
	case "google.protobuf.BoolValue":
		return scalar(isBool, "true or false"), true
	case "google.protobuf.StringValue":
		return scalar(isString, "a string"), true
	case "google.protobuf.FloatValue", "google.protobuf.DoubleValue":
		return scalar(isNumber, "a number"), true
	case "google.protobuf.UInt32Value":
		return scalar(func(n *yaml.Node) bool { return isWhole(n, 0, math.MaxUint32) }, "a whole number from 0 on"), true
	case "google.protobuf.Int32Value":
		return scalar(func(n *yaml.Node) bool { return isWhole(n, math.MinInt32, math.MaxInt32) }, "a whole number"), true
	case "google.protobuf.UInt64Value", "google.protobuf.Int64Value":
		return scalar(func(n *yaml.Node) bool { return isWhole(n, math.MinInt64, math.MaxInt64) }, "a whole number"), true
	}
	// What else there is (Struct, Any) has no fixed shape, and no field of these two kinds has it today.
	return func(*yaml.Node, string) []fieldError { return nil }, strings.HasPrefix(string(name), "google.protobuf.")
}

func isDuration(n *yaml.Node) bool {
	var d durationpb.Duration
	return isString(n) && protojson.Unmarshal([]byte(strconv.Quote(n.Value)), &d) == nil
}
