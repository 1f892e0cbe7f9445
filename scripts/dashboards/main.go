// Dashboards writes the Grafana dashboards of daemonset/dashboards, and daemonset/rules once more as the object that the
// Prometheus operator takes. A dashboard is a list of panels here; ids are what they say, and all else that Grafana wants
// is the same everywhere.
//
//	go run ./scripts/dashboards [-dir daemonset]
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	dir := flag.String("dir", "daemonset", "folder of the manifests")
	flag.Parse()
	if err := write(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "dashboards:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	all := map[string][]byte{}
	for name, text := range files() {
		all[filepath.Join(dir, "dashboards", name)] = text
	}
	rules, err := os.ReadFile(filepath.Join(dir, "rules", "culvert.yaml"))
	if err != nil {
		return err
	}
	all[filepath.Join(dir, "rules", "prometheusrule.yaml")] = prometheusRule(rules)
	for path, text := range all {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// files are all dashboards, by the name of the file.
func files() map[string][]byte {
	all := map[string][]byte{}
	for name, b := range map[string]board{"node": node(), "workload": workload(), "certificates": certificates()} {
		var text bytes.Buffer
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(b.dashboard("culvert-" + name)); err != nil {
			panic(err) // it is made of strings and numbers
		}
		all[name+".json"] = text.Bytes()
	}
	return all
}
