package cri

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxInfo bounds what is parsed of one sandbox. containerd's answer holds its whole OCI specification, some
// tens of kilobytes.
const maxInfo = 1 << 20

// place is where a runtime says that a sandbox's network namespace is.
type place struct {
	pid  int    // 0: the runtime keeps no process for the sandbox
	path string // "" when it named none
}

// lenientInt takes a number, a number in quotes, and everything else as 0: the field is no part of the API, and
// runtimes are free to write it as they like.
type lenientInt int

func (i *lenientInt) UnmarshalJSON(b []byte) error {
	n, err := strconv.Atoi(string(bytes.Trim(b, `"`)))
	if err != nil || n < 0 {
		n = 0
	}
	*i = lenientInt(n)
	return nil
}

// sandboxInfo is the union of what the runtimes put into the verbose answer. All of them write "pid" and
// "runtimeSpec"; containerd 2 has the path a second time in its own metadata, which is there also when another
// sandbox controller left the specification out.
type sandboxInfo struct {
	PID             lenientInt       `json:"pid"`
	RuntimeSpec     *runtimeSpec     `json:"runtimeSpec"`
	SandboxMetadata *sandboxMetadata `json:"sandboxMetadata"`
}

type runtimeSpec struct {
	Linux struct {
		Namespaces []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
	} `json:"linux"`
}

type sandboxMetadata struct {
	NetNSPath string `json:"NetNSPath"`
	Metadata  struct {
		NetNSPath string `json:"NetNSPath"`
	} `json:"Metadata"`
}

func (i *sandboxInfo) path() string {
	if i.RuntimeSpec != nil {
		for _, n := range i.RuntimeSpec.Linux.Namespaces {
			if n.Type == "network" && n.Path != "" {
				return n.Path
			}
		}
	}
	if m := i.SandboxMetadata; m != nil {
		if m.NetNSPath != "" {
			return m.NetNSPath
		}
		return m.Metadata.NetNSPath
	}
	return ""
}

// parseInfo finds the namespace in a verbose answer. containerd and CRI-O put one JSON object under "info"; others
// spread the fields over several keys, so all are looked at, "info" first.
func parseInfo(info map[string]string) (place, error) {
	var found place
	var failed error
	keys := slices.Sorted(maps.Keys(info))
	slices.SortStableFunc(keys, func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == "info":
			return -1
		case b == "info":
			return 1
		}
		return 0
	})
	for _, key := range keys {
		value := info[key]
		if len(value) > maxInfo {
			failed = errors.New("its answer is too large")
			continue
		}
		if one, err := parseValue(key, value); err != nil {
			failed = err
		} else {
			if found.pid == 0 {
				found.pid = one.pid
			}
			if found.path == "" {
				found.path = one.path
			}
		}
	}
	switch {
	case found != place{}:
		return found, nil
	case failed != nil:
		return found, failed
	case len(info) == 0:
		return found, errors.New("its answer has no verbose information")
	}
	return found, errors.New("its answer names neither a process nor a path")
}

func parseValue(key, value string) (place, error) {
	var i sandboxInfo
	switch trimmed := strings.TrimSpace(value); {
	case key == "pid":
		_ = i.PID.UnmarshalJSON([]byte(trimmed))
	case !strings.HasPrefix(trimmed, "{"):
		return place{}, nil
	case key == "runtimeSpec":
		if err := json.Unmarshal([]byte(trimmed), &i.RuntimeSpec); err != nil {
			return place{}, err
		}
	default:
		if err := json.Unmarshal([]byte(trimmed), &i); err != nil {
			return place{}, err
		}
	}
	return place{int(i.PID), i.path()}, nil
}
