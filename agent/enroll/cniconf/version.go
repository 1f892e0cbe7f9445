package cniconf

import (
	"fmt"
	"strconv"
	"strings"
)

// oldest and newest are the versions of the CNI specification that the plugin speaks.
func oldest() [3]int { return [3]int{0, 3, 0} }
func newest() [3]int { return [3]int{1, 1, 0} }

// checkVersions returns an error if the runtime could ask the plugin with a version that it does not speak: it
// would refuse every pod of the node. A runtime takes the highest that it knows of all that a list names.
func checkVersions(versions []string) error {
	highest := [3]int{}
	for _, v := range versions {
		n, err := parseVersion(v)
		if err != nil {
			return err
		}
		if compare(n, newest()) > 0 {
			return fmt.Errorf("cniVersion %s is newer than the plugin culvert-cni, which would refuse every pod", v)
		}
		if compare(n, highest) > 0 {
			highest = n
		}
	}
	if compare(highest, oldest()) < 0 {
		return fmt.Errorf("cniVersion %q is older than 0.3.0 (none at all means 0.1.0): plugins cannot be chained", strings.Join(versions, " "))
	}
	return nil
}

func parseVersion(v string) (n [3]int, err error) {
	parts := strings.Split(v, ".")
	if len(parts) > 3 {
		return n, fmt.Errorf("cniVersion %q is no version", v)
	}
	for i, p := range parts {
		if n[i], err = strconv.Atoi(p); err != nil || n[i] < 0 {
			return n, fmt.Errorf("cniVersion %q is no version", v)
		}
	}
	return n, nil
}

func compare(a, b [3]int) int {
	for i := range a {
		if a[i] != b[i] {
			return a[i] - b[i]
		}
	}
	return 0
}
