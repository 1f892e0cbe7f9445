package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestCommittedDashboardsAreWhatTheProgramMakes(t *testing.T) {
	const dir = "../../daemonset/dashboards"
	want := files()
	committed, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(committed) != len(want) {
		t.Errorf("%d files are there, want %d", len(committed), len(want))
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, text) {
			t.Errorf("%s is not what is made now: go run ./scripts/dashboards", name)
		}
	}
}

func TestPanelsDoNotOverlapAndSayWhatTheyShow(t *testing.T) {
	type panel struct {
		ID          int
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		FieldConfig struct{ Defaults struct{ Unit string } }
		Targets     []struct{ Expr string }
	}
	for name, text := range files() {
		var board struct{ Panels []panel }
		if err := json.Unmarshal(text, &board); err != nil {
			t.Fatal(err)
		}
		taken, titles := map[[2]int]string{}, map[string]bool{}
		for _, p := range board.Panels {
			if p.Title == "" || titles[p.Title] {
				t.Errorf("%s: title %q is empty or there twice", name, p.Title)
			}
			titles[p.Title] = true
			if p.Type != "row" && (p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0) {
				t.Errorf("%s: %s has no unit, or no query", name, p.Title)
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" || x >= columns {
						t.Fatalf("%s: %s lies over %s or sticks out", name, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
		}
	}
}
