package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"
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

func TestCommittedPrometheusRuleHasTheRules(t *testing.T) {
	const dir = "../../daemonset/rules/"
	rules, err := os.ReadFile(dir + "culvert.yaml")
	if err != nil {
		t.Fatal(err)
	}
	committed, err := os.ReadFile(dir + "prometheusrule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, prometheusRule(rules)) {
		t.Error("prometheusrule.yaml is not what is made now: go run ./scripts/dashboards")
	}
	var plain map[string]any
	var object struct {
		Kind string
		Spec map[string]any
	}
	if err := errors.Join(yaml.Unmarshal(rules, &plain), yaml.Unmarshal(committed, &object)); err != nil {
		t.Fatal(err)
	}
	if object.Kind != "PrometheusRule" || len(plain) == 0 || !reflect.DeepEqual(object.Spec, plain) {
		t.Error("prometheusrule.yaml says something else than culvert.yaml")
	}
}

// A file that kustomize is not told of is not installed.
func TestEveryDashboardIsInstalled(t *testing.T) {
	text, err := os.ReadFile("../../daemonset/dashboards/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var k struct {
		ConfigMapGenerator []struct {
			Files   []string
			Options struct{ Labels map[string]string }
		} `yaml:"configMapGenerator"`
	}
	if err := yaml.Unmarshal(text, &k); err != nil {
		t.Fatal(err)
	}
	if len(k.ConfigMapGenerator) != 1 || k.ConfigMapGenerator[0].Options.Labels["grafana_dashboard"] != "1" {
		t.Fatalf("want one ConfigMap that Grafana's sidecar finds: %+v", k)
	}
	want := slices.Sorted(maps.Keys(files()))
	if got := k.ConfigMapGenerator[0].Files; !slices.Equal(got, want) {
		t.Errorf("installs %v, want %v", got, want)
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
