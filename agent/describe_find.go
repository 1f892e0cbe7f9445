package agent

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source"
)

// maxCandidates bounds how many names an error has.
const maxCandidates = 10

// podNamed finds a pod of any node by "namespace/name", or by a name that only one namespace has.
func podNamed(s *source.Snapshot, name string) (*source.Pod, error) {
	if p := s.LocalPod(name); p != nil {
		return p, nil
	}
	return named("pods", name, s.All(), (*source.Pod).Ref)
}

// serviceNamed is podNamed for Services.
func serviceNamed(s *source.Snapshot, name string) (*source.Service, error) {
	return named("services", name, s.Services(), (*source.Service).Ref)
}

// named finds what has a name among all, of a kind in the words of kubectl; the error lists what may have been meant.
func named[T any](kind, name string, all iter.Seq[T], ref func(T) string) (found T, err error) {
	var exact []T
	var refs []string
	for v := range all {
		r := ref(v)
		_, bare, _ := strings.Cut(r, "/")
		if r == name || bare == name {
			exact = append(exact, v)
		}
		refs = append(refs, r)
	}
	switch {
	case len(exact) == 1:
		return exact[0], nil
	case len(exact) > 1:
		var same []string
		for _, v := range exact {
			same = append(same, ref(v))
		}
		return found, notFound(fmt.Sprintf("%s %q found in several namespaces; say which of %s", kind, name, someNames(same)))
	}
	text := fmt.Sprintf("%s %q not found in any namespace", kind, name)
	like := similar(name, refs)
	if namespace, bare, ok := strings.Cut(name, "/"); ok {
		text = fmt.Sprintf("%s %q not found in namespace %q", kind, bare, namespace)
		elsewhere := slices.DeleteFunc(slices.Clone(refs), func(r string) bool { return !strings.HasSuffix(r, "/"+bare) })
		if len(elsewhere) > 0 && bare != "" {
			like = elsewhere
		}
	}
	if len(like) > 0 {
		text += "; did you mean " + someNames(like) + "?"
	}
	return found, notFound(text)
}

// notFound is an ErrUnknownWorkload in words for people.
type notFound string

// Error implements error.
func (e notFound) Error() string { return string(e) }

// Is makes errors.Is find ErrUnknownWorkload.
func (e notFound) Is(target error) bool { return target == admin.ErrUnknownWorkload }

// similar are the names that begin as this one does: what replaces a pod has its name but for the end.
func similar(name string, refs []string) []string {
	for stem := name; stem != ""; {
		var like []string
		for _, r := range refs {
			_, bare, _ := strings.Cut(r, "/")
			if strings.HasPrefix(r, stem) || strings.HasPrefix(bare, stem) {
				like = append(like, r)
			}
		}
		if len(like) > 0 {
			return like
		}
		cut := strings.LastIndexAny(strings.TrimRight(stem, "/-"), "/-")
		if cut < 0 {
			return nil
		}
		stem = stem[:cut+1]
		if stem == "" || strings.Trim(stem, "/-") == "" {
			return nil
		}
	}
	return nil
}

func someNames(all []string) string {
	slices.Sort(all)
	if more := len(all) - maxCandidates; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxCandidates], ", "), more)
	}
	return strings.Join(all, ", ")
}
