package pemdir

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Names as Kubernetes has them: a namespace is a DNS label, a service account a DNS name of labels. None of them can be
// "..", hold a slash, or begin with a dot. (The pattern is compiled for each of the few names there are.)
const (
	label      = `[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`
	pathOfID   = `^/ns/(` + label + `)/sa/(` + label + `(\.` + label + `)*)$`
	maxAccount = 253
)

// folderOf returns where the files of an identity are.
func (f *Folder) folderOf(id spiffeid.ID) (string, error) {
	if id.TrustDomain() != f.domain {
		return "", fmt.Errorf("SVID: %s is not of the trust domain %s", id, f.domain.Name())
	}
	parts := regexp.MustCompile(pathOfID).FindStringSubmatch(id.Path())
	if parts == nil || len(parts[3]) > maxAccount {
		return "", fmt.Errorf("SVID: %q is not /ns/NAMESPACE/sa/ACCOUNT with names of Kubernetes", id.Path())
	}
	return filepath.Join(f.dir, parts[1], parts[3]), nil
}

// domainOf returns the trust domain that a file of roots is for, by its name.
func domainOf(name string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(strings.TrimSuffix(name, rootsSuffix))
	if err != nil {
		return td, fmt.Errorf("%s is not named after a trust domain: %w", name, err)
	}
	return td, nil
}
