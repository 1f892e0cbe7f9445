// Dashboards writes the Grafana dashboards of daemonset/dashboards. A dashboard is a list of panels here; ids are what
// they say, and all else that Grafana wants is the same everywhere.
//
//	go run ./scripts/dashboards [-dir daemonset/dashboards]
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
	dir := flag.String("dir", "daemonset/dashboards", "folder that is written to")
	flag.Parse()
	if err := write(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "dashboards:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	for name, text := range files() {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
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
