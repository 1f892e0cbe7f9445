// Command importcheck fails if a package of this module imports what it must not know.
//
// The floors, from the top: cmd; agent and tunnel; policy and bpf. An arrow goes only downwards, the agent
// knows of the tunnel only tunnel/control, bpf is known to agent/datapath alone, and Kubernetes types end at
// agent/source. Tests obey the same rules, but may use e2e/lab.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	problems, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "importcheck:", err)
		os.Exit(2)
	}
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, p)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
}

// run checks the module that the working directory belongs to.
func run() ([]string, error) {
	module, root, err := currentModule()
	if err != nil {
		return nil, err
	}
	packages, err := listPackages(root)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("reading the module's folder: %w", err)
	}
	return append(checkFolders(entries), checkImports(module, packages)...), nil
}

// goPackage is what `go list -json` tells of a package, as far as it is needed.
type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func currentModule() (path, dir string, err error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Path}}\n{{.Dir}}").Output()
	if err != nil {
		return "", "", fmt.Errorf("asking for the module: %w", withStderr(err))
	}
	path, dir, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	return path, filepath.Clean(dir), nil
}

// listPackages lists the packages in dir. Those that do not compile are listed as well (-e).
func listPackages(dir string) ([]goPackage, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the packages: %w", withStderr(err))
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the list of packages: %w", err)
		}
		packages = append(packages, p)
	}
}

func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}
