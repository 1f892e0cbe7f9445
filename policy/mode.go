package policy

import (
	"fmt"
	"maps"
)

// Mode is a mutual TLS mode. The zero value is Unset: inherited from the next weaker level.
type Mode uint8

// The modes, from the loosest to the strictest.
const (
	Unset Mode = iota
	Disable
	Permissive
	Strict
)

// String is the name the API uses.
func (m Mode) String() string {
	switch m {
	case Unset:
		return "UNSET"
	case Disable:
		return "DISABLE"
	case Permissive:
		return "PERMISSIVE"
	case Strict:
		return "STRICT"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// MarshalText makes a Mode a plain string in JSON.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// ParseMode reads the API's spelling, and nothing else. The empty string is Unset.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "", "UNSET":
		return Unset, nil
	case "DISABLE":
		return Disable, nil
	case "PERMISSIVE":
		return Permissive, nil
	case "STRICT":
		return Strict, nil
	}
	return Unset, fmt.Errorf("mode %q is unknown (UNSET, DISABLE, PERMISSIVE or STRICT)", s)
}

// or is m, or inherited when m is Unset. What is no mode at all is Strict: the unknown opens nothing.
func (m Mode) or(inherited Mode) Mode {
	if m == Unset {
		return inherited
	}
	return min(m, Strict)
}

// ForPort is the mode of a container port. It is never Unset: what is left open is PERMISSIVE.
func (m Modes) ForPort(port uint16) Mode {
	if port == 0 { // no connection has it
		return m.Default.or(Permissive)
	}
	return m.Ports[port].or(m.Default.or(Permissive))
}

// Equal reports whether a and b mean the same for every port.
func (m Modes) Equal(other Modes) bool {
	a, b := m.normal(), other.normal()
	return a.Default == b.Default && maps.Equal(a.Ports, b.Ports)
}

// Tighter takes the stricter of both for each port: STRICT before PERMISSIVE before DISABLE. The
// result has no Unset and names only the ports that differ from its Default.
func Tighter(a, b Modes) Modes {
	t := Modes{Default: max(a.ForPort(0), b.ForPort(0)), Ports: make(map[uint16]Mode, len(a.Ports)+len(b.Ports))}
	for port := range a.Ports {
		t.Ports[port] = max(a.ForPort(port), b.ForPort(port))
	}
	for port := range b.Ports {
		t.Ports[port] = max(a.ForPort(port), b.ForPort(port))
	}
	return t.normal()
}

// normal has no Unset, and no port that says what Default says, which port 0 always does.
func (m Modes) normal() Modes {
	n := Modes{Default: m.Default.or(Permissive)}
	for port := range m.Ports {
		mode := m.ForPort(port)
		if mode == n.Default {
			continue
		}
		if n.Ports == nil {
			n.Ports = make(map[uint16]Mode, len(m.Ports))
		}
		n.Ports[port] = mode
	}
	return n
}
