package policy

import (
	"encoding/json"
	"testing"
)

func TestModesAreReadAsTheAPISpellsThem(t *testing.T) {
	for text, want := range map[string]Mode{"": Unset, "UNSET": Unset, "DISABLE": Disable, "PERMISSIVE": Permissive, "STRICT": Strict} {
		got, err := ParseMode(text)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		if text != "" && got.String() != text {
			t.Errorf("%q comes back as %q", text, got)
		}
	}
	for _, text := range []string{"strict", "Strict", " STRICT", "ALLOW", "3"} {
		if m, err := ParseMode(text); err == nil {
			t.Errorf("%q was read as %s", text, m)
		}
	}
}

func TestTLSModesAreReadAsTheAPISpellsThem(t *testing.T) {
	for _, want := range []TLSMode{TLSUnset, TLSDisable, TLSSimple, TLSMutual, TLSIstioMutual} {
		if got, err := ParseTLSMode(want.String()); err != nil || got != want {
			t.Errorf("%q: %v, %v", want, got, err)
		}
	}
	if m, err := ParseTLSMode("mutual"); err == nil {
		t.Errorf("read as %s", m)
	}
}

func TestDecisionsAreReadableAsJSON(t *testing.T) {
	got, err := json.Marshal(PortDecision{Strict, Ref{}})
	if want := `{"mode":"STRICT","policy":"default"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
	got, err = json.Marshal(Finding{Severity: Warning, Object: "PeerAuthentication a/b", Message: "m"})
	if want := `{"severity":"warning","object":"PeerAuthentication a/b","message":"m"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestExplanationsAreReadableAsJSON(t *testing.T) {
	got, err := json.Marshal([]any{LevelMesh, LevelNamespace, LevelWorkload, Auto, Plaintext, Mutual, Originate, TLSIstioMutual, Error})
	want := `["mesh","namespace","workload","auto","plaintext","mutual","originate","ISTIO_MUTUAL","error"]`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestModesForPort(t *testing.T) {
	m := Modes{Default: Strict, Ports: map[uint16]Mode{80: Permissive, 81: Unset, 82: 9, 0: Disable}}
	for port, want := range map[uint16]Mode{80: Permissive, 81: Strict, 82: Strict, 83: Strict, 0: Strict} {
		if got := m.ForPort(port); got != want {
			t.Errorf("port %d: %s, want %s", port, got, want)
		}
	}
	if got := (Modes{}).ForPort(80); got != Permissive {
		t.Errorf("zero Modes: %s", got)
	}
}

func TestModesAreEqualWhenTheyMeanTheSame(t *testing.T) {
	m := Modes{Default: Strict, Ports: map[uint16]Mode{80: Permissive}}
	for _, tt := range []struct {
		other Modes
		want  bool
	}{
		{Modes{Default: Strict, Ports: map[uint16]Mode{80: Permissive, 81: Strict, 82: Unset}}, true},
		{Modes{Default: Strict, Ports: map[uint16]Mode{80: Disable}}, false},
		{Modes{Default: Strict, Ports: map[uint16]Mode{81: Permissive}}, false},
		{Modes{Default: Strict}, false},
		{Modes{Default: Permissive, Ports: map[uint16]Mode{80: Permissive}}, false},
	} {
		if m.Equal(tt.other) != tt.want || tt.other.Equal(m) != tt.want {
			t.Errorf("%v: want %v", tt.other, tt.want)
		}
	}
	if !(Modes{}).Equal(Modes{Default: Permissive}) {
		t.Error("zero Modes is not PERMISSIVE")
	}
}

func TestTighterTakesTheStricterOfBothPerPort(t *testing.T) {
	a := Modes{Default: Permissive, Ports: map[uint16]Mode{80: Strict, 81: Disable}}
	b := Modes{Default: Disable, Ports: map[uint16]Mode{82: Strict, 81: Disable}}
	want := Modes{Default: Permissive, Ports: map[uint16]Mode{80: Strict, 81: Disable, 82: Strict}}
	if got := Tighter(a, b); !got.Equal(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
