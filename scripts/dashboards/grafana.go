package main

import "fmt"

// board is what differs from one dashboard to the next.
type board struct {
	title       string
	description string
	variables   []variable
	rows        []row
}

// variable is a choice at the top: the values of a label of a metric.
type variable struct{ name, label, metric string }

// row has panels that belong together.
type row struct {
	title  string
	panels []panel
}

// panel shows queries. Grafana draws 24 columns to a line.
type panel struct {
	kind        kind
	title, help string
	unit        unit
	width       int
	queries     []query
	// bad, if not 0, is from where on a stat is red. below says that it is red up to there.
	bad   float64
	below bool
}

type kind string

const (
	graph kind = "timeseries"
	stat  kind = "stat"
	table kind = "table"
)

// unit is one of Grafana's.
type unit string

const (
	count       unit = "short"
	perSecond   unit = "cps"
	seconds     unit = "s"
	bytesOf     unit = "bytes"
	bytesPerSec unit = "Bps"
	share       unit = "percentunit"
)

type query struct{ expr, legend string }

const (
	columns     = 24
	panelHeight = 8
	statHeight  = 4
	// schema is Grafana 10's and later ones' version of the format.
	schema = 39
)

type object map[string]any

func datasource() object { return object{"type": "prometheus", "uid": "${datasource}"} }

func (b board) dashboard(uid string) object {
	variables := []object{{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}}
	for _, v := range b.variables {
		q := fmt.Sprintf("label_values(%s, %s)", v.metric, v.label)
		variables = append(variables, object{
			"name": v.name, "label": v.name, "type": "query", "datasource": datasource(), "query": q,
			"refresh": 2, // whenever the time range changes
			"sort":    1, // by name
			"multi":   true, "includeAll": true, "allValue": ".*", "current": object{"text": "All", "value": "$__all"},
		})
	}
	return object{
		"uid": uid, "title": b.title, "description": b.description, "tags": []string{"culvert"}, "schemaVersion": schema,
		"editable": true, "refresh": "30s", "time": object{"from": "now-1h", "to": "now"},
		"templating": object{"list": variables}, "annotations": object{"list": []object{}}, "panels": b.panels(),
		"links": []object{{
			"type": "dashboards", "title": "Culvert", "icon": "external link", "tooltip": "", "tags": []string{"culvert"},
			"asDropdown": true, "includeVars": true, "keepTime": true, "targetBlank": false,
		}},
	}
}

// panels places them from left to right, row below row.
func (b board) panels() []object {
	var all []object
	y := 0
	for _, r := range b.rows {
		all = append(all, object{"type": "row", "title": r.title, "collapsed": false, "panels": []object{},
			"gridPos": object{"x": 0, "y": y, "w": columns, "h": 1}})
		y++
		x, height := 0, 0
		for _, p := range r.panels {
			if x+p.width > columns {
				x, y, height = 0, y+height, 0
			}
			h := panelHeight
			if p.kind == stat {
				h = statHeight
			}
			all = append(all, p.object(object{"x": x, "y": y, "w": p.width, "h": h}))
			x, height = x+p.width, max(height, h)
		}
		y += height
	}
	for i := range all {
		all[i]["id"] = i + 1 // the panel's place: Grafana wants a number
	}
	return all
}

func (p panel) object(at object) object {
	var targets []object
	for i, q := range p.queries {
		t := object{"refId": string(rune('A' + i)), "expr": q.expr, "legendFormat": q.legend, "datasource": datasource()}
		switch p.kind {
		case graph:
			t["range"] = true
		case table:
			t["instant"], t["format"] = true, "table"
		case stat:
			t["instant"] = true
		}
		targets = append(targets, t)
	}
	defaults := object{"unit": p.unit, "min": 0}
	if p.bad != 0 {
		low, high := "green", "red"
		if p.below {
			low, high = high, low
		}
		defaults["color"] = object{"mode": "thresholds"}
		defaults["thresholds"] = object{"mode": "absolute", "steps": []object{{"color": low, "value": nil}, {"color": high, "value": p.bad}}}
	}
	o := object{
		"type": p.kind, "title": p.title, "description": p.help, "datasource": datasource(), "gridPos": at, "targets": targets,
		"fieldConfig": object{"defaults": defaults, "overrides": []object{}},
	}
	switch p.kind {
	case graph:
		o["options"] = object{"legend": object{"calcs": []string{}, "displayMode": "list", "placement": "bottom", "showLegend": true},
			"tooltip": object{"mode": "multi", "sort": "desc"}}
	case stat:
		o["options"] = object{
			"reduceOptions": object{"calcs": []string{"lastNotNull"}}, "colorMode": "value", "graphMode": "none", // it is one value
			"justifyMode": "auto", "textMode": "auto", "orientation": "auto",
		}
	case table:
		o["transformations"] = []object{{"id": "organize", "options": object{"excludeByName": object{"Time": true}}}}
	}
	return o
}
