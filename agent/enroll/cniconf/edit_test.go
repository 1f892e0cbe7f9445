package cniconf

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const ourEntry = `{"type":"culvert-cni","socket":"/run/culvert/cni.sock","failOpen":false}`

const kindnet = `{
	"cniVersion": "0.3.1",
	"name": "kindnet",
	"plugins": [
	{
		"type": "ptp",
		"ipMasq": false,
		"mtu": 1e3,
		"ipam": { "type": "host-local", "routes": [ { "dst": "0.0.0.0/0" } ], "ranges": [ [ { "subnet": "10.244.0.0/24" } ] ] }
	},
	{
		"type": "portmap",
		"capabilities": { "portMappings": true }
	}
	]
}
`

func TestChain(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"one line": {
			`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}`,
			`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"},` + ourEntry + `]}`,
		},
		"several lines": {kindnet, strings.Replace(kindnet, "\n\t]\n}", ",\n\t"+ourEntry+"\n\t]\n}", 1)},
		"old entry of ours": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}, {"type":"culvert-cni"}, {"type":"b"}]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}, {"type":"b"}, ` + ourEntry + `]}`,
		},
		"twice": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},` + ourEntry + `,` + ourEntry + `]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},` + ourEntry + `]}`,
		},
		"first": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[ ` + ourEntry + `, {"type":"a"} ]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[ {"type":"a"}, ` + ourEntry + ` ]}`,
		},
		"somebody came after us": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},` + ourEntry + `,{"type":"b"}]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},` + ourEntry + `,{"type":"b"}]}`,
		},
		"several versions": {
			`{"cniVersions":["0.3.1","1.1.0"],"disableCheck":true,"name":"n","plugins":[{"type":"a"}]}`,
			`{"cniVersions":["0.3.1","1.1.0"],"disableCheck":true,"name":"n","plugins":[{"type":"a"},` + ourEntry + `]}`,
		},
		"the last of two lists counts": {
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}`,
			`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}],"plugins":[{"type":"b"},` + ourEntry + `]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := chain([]byte(tc.text), []byte(ourEntry))
			if err != nil || string(got) != tc.want {
				t.Errorf("got %s, %v\nwant %s", got, err, tc.want)
			}
		})
	}
}

func TestWhatCannotBeChained(t *testing.T) {
	for name, text := range map[string]string{
		"half written":      kindnet[:len(kindnet)/2],
		"empty":             "",
		"no object":         "[]",
		"no name":           `{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}`,
		"name is a number":  `{"name":1,"cniVersion":"1.0.0","plugins":[{"type":"a"}]}`,
		"no plugins":        `{"name":"n","cniVersion":"1.0.0"}`,
		"empty plugins":     `{"name":"n","cniVersion":"1.0.0","plugins":[]}`,
		"plugins null":      `{"name":"n","cniVersion":"1.0.0","plugins":null}`,
		"plugin no object":  `{"name":"n","cniVersion":"1.0.0","plugins":["a"]}`,
		"plugin no type":    `{"name":"n","cniVersion":"1.0.0","plugins":[{}]}`,
		"only ours":         `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"culvert-cni"}]}`,
		"no version":        `{"name":"n","plugins":[{"type":"a"}]}`,
		"too old":           `{"name":"n","cniVersion":"0.2.0","plugins":[{"type":"a"}]}`,
		"too new":           `{"name":"n","cniVersion":"1.2.0","plugins":[{"type":"a"}]}`,
		"too new of many":   `{"name":"n","cniVersions":["1.0.0","2.0.0"],"plugins":[{"type":"a"}]}`,
		"no version at all": `{"name":"n","cniVersion":"x","plugins":[{"type":"a"}]}`,
	} {
		if got, err := chain([]byte(text), []byte(ourEntry)); err == nil {
			t.Errorf("%s: chained to %s", name, got)
		}
	}
}

// FuzzEdit: chaining loses nothing, chaining twice changes nothing, and cutting our entry out again gives back
// each byte.
func FuzzEdit(f *testing.F) {
	f.Add([]byte(kindnet))
	f.Add([]byte(` {"name":"n" , "cniVersion":"0.4.0","plugins" : [ {"type":"a"} ,{"type":"b","x":[1,{"y":null}]}	] , "z":1.50}` + "\n\n"))
	f.Add([]byte(`{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"culvert-cni"},{"type":"a"},{"Type":"culvert-cni"}]}`))
	f.Add([]byte(`{"name":"\ud800","cniVersions":["1.1.0"],"plugins":[{"type":"a"}],"plugins":[{"type":"é"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		original, err := unchain(text)
		if err != nil {
			return
		}
		with, err := chain(original, []byte(ourEntry))
		if err != nil {
			return
		}
		if again, err := chain(with, []byte(ourEntry)); err != nil || !bytes.Equal(again, with) {
			t.Errorf("chaining again: %v\n%s\n%s", err, with, again)
		}
		if back, err := unchain(with); err != nil || !bytes.Equal(back, original) {
			t.Errorf("unchaining: %v\n%s\n%s", err, original, back)
		}
		var a, b map[string]any
		if json.Unmarshal(original, &a) != nil || json.Unmarshal(with, &b) != nil {
			t.Fatalf("no JSON any more: %s", with)
		}
		if list := b["plugins"].([]any); !reflect.DeepEqual(list[:len(list)-1], a["plugins"]) {
			t.Errorf("plugins changed: %v, %v", a["plugins"], list)
		}
		delete(a, "plugins")
		delete(b, "plugins")
		if !reflect.DeepEqual(a, b) {
			t.Errorf("fields changed: %v, %v", a, b)
		}
	})
}

func TestShadows(t *testing.T) {
	single := `{ "type": "bridge", "name": "a \"name\"", "cniVersion": "0.3.1", "mtu": 1.50 }`
	got, err := shadowOfSingle("10-a.conf", []byte(single), []byte(ourEntry))
	if err != nil {
		t.Fatal(err)
	}
	l, err := parseList(got)
	if err != nil || l.shadows != "10-a.conf" || !l.chained([]byte(ourEntry)) || !bytes.Contains(got, []byte(single)) {
		t.Errorf("%s: %+v, %v", got, l, err)
	}
	got, err = shadowOfList("10-a.conflist", []byte(kindnet), []byte(ourEntry))
	if err != nil {
		t.Fatal(err)
	}
	if l, err = parseList(got); err != nil || l.shadows != "10-a.conflist" || !l.chained([]byte(ourEntry)) {
		t.Errorf("%s: %+v, %v", got, l, err)
	}
	for _, name := range []string{"10-a.conf", "10-a.conflist", "10-a.json", "a", "10-a.b.conf"} {
		if shadow := shadowName(name); shadow >= name+"." || name != "a" && shadow >= name {
			t.Errorf("%s does not sort before %s", shadow, name)
		}
	}
	if _, err := shadowOfSingle("x", []byte(`{"type":"a"}`), []byte(ourEntry)); err == nil {
		t.Error("a configuration without version was chained")
	}
}
