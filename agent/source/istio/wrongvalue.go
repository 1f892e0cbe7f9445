package istio

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// WrongValue is the error for a value of another type, or from another set, than its field's.
type WrongValue struct {
	before, after string // what the message says around the value
	value         any
}

// Error names the value as JSON has it.
func (e *WrongValue) Error() string { return e.Describe(describe(e.value)) }

// Describe is the message with the value in other words, of a source whose objects were not written as JSON: YAML's
// "on" is better called that than true.
func (e *WrongValue) Describe(value string) string { return e.before + value + e.after }

// describe names what a value is, for "must be a string, not ...".
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case map[string]any:
		return "a mapping"
	case []any:
		return "a list"
	case bool:
		return "the boolean " + strconv.FormatBool(v)
	case string:
		if len(v) > 64 {
			v = v[:64] + "..."
		}
		return strconv.Quote(v)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("a %T", v)
	}
	return "the number " + string(text)
}
