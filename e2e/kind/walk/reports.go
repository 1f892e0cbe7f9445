package walk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// redirection is the annotation that tells peers that a pod is enrolled.
const redirection = "ambient.istio.io/redirection"

// rejectedPolicy is what only an older version of the kind lets through: port modes without a selector.
const rejectedPolicy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: from-before\n  namespace: " + walkNamespace +
	"\nspec:\n  mtls: {mode: PERMISSIVE}\n  portLevelMtls:\n    9080: {mode: PERMISSIVE}\n"

const sidecarPod = `apiVersion: v1
kind: Pod
metadata: {name: sidecar, namespace: %[1]s, labels: {culvert.test/walk: "yes"}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: %[3]q, imagePullPolicy: IfNotPresent, args: [serve, --http, "9080"]}
  - {name: istio-proxy, image: %[3]q, imagePullPolicy: IfNotPresent, args: [serve, --http, "15090"]}
`

// reports is what one sees with kubectl of what Culvert does.
func reports() group {
	return group{name: "what kubectl shows", setup: func(ctx context.Context, s *suite) error {
		return errors.Join(s.applyPolicies(ctx, "default-strict"), s.apply(ctx, fmt.Sprintf(sidecarPod, walkNamespace, s.node("a"), s.Tools)))
	}, teardown: func(ctx context.Context, s *suite) error {
		return errors.Join(s.applyPolicies(ctx), s.remove(ctx, rejectedPolicy), s.stop(ctx, walkNamespace, "sidecar", "leaver"))
	}, rows: []row{
		{name: "event Enrolled on a pod", where: anywhere, expected: "there", do: event("default", "Enrolled", "productpage", "")},
		{name: "annotation of an enrolled pod", where: anywhere, expected: "enabled", do: annotation(productpage, "enabled")},
		{name: "annotation of a pod that opted out", where: anywhere, expected: "none", do: annotation(legacyApp, "")},
		{name: "annotation of a pod outside the mesh", where: anywhere, expected: "none", do: annotation(auditor, "")},
		{name: "event NotEnrolled on a pod with a sidecar", where: anywhere, expected: "with the reason", do: event(walkNamespace, "NotEnrolled", "sidecar", "istio-proxy")},
		{name: "kubectl get peerauthentication", where: anywhere, expected: "mode and age", do: columns},
		{name: "condition of a policy that holds", where: anywhere, expected: "True", do: condition("default", "default-strict", "True")},
		{name: "condition of a policy that an older kind let through", where: anywhere, expected: "False, with the reason", nodes: true, do: rejected},
		{name: "event PolicyRejected", where: anywhere, expected: "there", nodes: true, do: event(walkNamespace, "PolicyRejected", "from-before", "")},
		{name: "pod opts out and in again by its label", where: acrossNodes, expected: "refused, ok, refused", do: leaveAndReturn},
	}}
}

// event waits for an Event on an object.
func event(namespace, reason, object, contains string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		var out string
		err := until(ctx, 20*time.Second, func(ctx context.Context) (err error) {
			out, err = s.kubectl(ctx, "get", "events", "--namespace="+namespace, "--field-selector=reason="+reason+",involvedObject.name="+object,
				"--output=jsonpath={range .items[*]}{.type} {.reason}: {.message}{\"\\n\"}{end}")
			if err == nil && (!strings.Contains(out, reason) || !strings.Contains(out, contains)) {
				err = fmt.Errorf("no event %s on %s/%s that contains %q: %q", reason, namespace, object, contains, out)
			}
			return err
		})
		return tail(out, 1), err
	}
}

func annotation(ref, want string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		namespace, name, _ := strings.Cut(ref, "/")
		var got string
		err := until(ctx, 15*time.Second, func(ctx context.Context) error {
			var p podObject
			if err := s.getJSON(ctx, &p, "pod", name, "--namespace="+namespace); err != nil {
				return err
			}
			if got = p.Metadata.Annotations[redirection]; got != want {
				return fmt.Errorf("pod %s: annotation %s is %q", ref, redirection, got)
			}
			return nil
		})
		if got == "" {
			got = "none"
		}
		return got, err
	}
}

func columns(ctx context.Context, s *suite) (string, error) {
	out, err := s.kubectl(ctx, "get", "peerauthentication", "default-strict", "--namespace=default")
	if err != nil {
		return "", err
	}
	head, line, _ := strings.Cut(strings.TrimSpace(out), "\n")
	names, values := strings.Fields(head), strings.Fields(line)
	if strings.Join(names, " ") != "NAME MODE AGE" || len(values) != 3 || values[1] != "STRICT" {
		return "", fmt.Errorf("kubectl printed %q", out)
	}
	return line, nil
}

func condition(namespace, name, want string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		var got string
		err := until(ctx, 20*time.Second, func(ctx context.Context) (err error) {
			got, err = s.kubectl(ctx, "get", "peerauthentication", name, "--namespace="+namespace,
				`--output=jsonpath={range .status.conditions[?(@.type=="culvert.dev/Accepted")]}{.status} {.reason}: {.message}{end}`)
			if err == nil && !strings.HasPrefix(got, want) {
				err = fmt.Errorf("policy %s/%s: condition culvert.dev/Accepted is %q", namespace, name, got)
			}
			return err
		})
		return got, err
	}
}

// rejected makes a policy while the kind's own rules are away. The kind is everybody's: on somebody's cluster this is left
// out, as what needs the nodes is.
func rejected(ctx context.Context, s *suite) (string, error) {
	const kind = "peerauthentications.security.istio.io"
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema struct {
						Properties map[string]map[string]any
					}
				}
			}
		}
	}
	if err := s.getJSON(ctx, &crd, "crd", kind); err != nil {
		return "", err
	}
	const rules = "x-kubernetes-validations"
	var without, with []map[string]any
	for i, v := range crd.Spec.Versions {
		path := fmt.Sprintf("/spec/versions/%d/schema/openAPIV3Schema/properties/spec/%s", i, rules)
		without = append(without, map[string]any{"op": "remove", "path": path})
		with = append(with, map[string]any{"op": "add", "path": path, "value": v.Schema.OpenAPIV3Schema.Properties["spec"][rules]})
	}
	patch := func(ctx context.Context, operations []map[string]any) error {
		text, err := json.Marshal(operations)
		if err != nil {
			return err
		}
		_, err = s.kubectl(ctx, "patch", "crd", kind, "--type=json", "--patch="+string(text))
		return err
	}
	if err := patch(ctx, without); err != nil {
		return "", err
	}
	// The API server takes a moment to use the kind as it is now.
	err := until(ctx, 15*time.Second, func(ctx context.Context) error { return s.apply(ctx, rejectedPolicy) })
	if err := errors.Join(err, patch(context.WithoutCancel(ctx), with)); err != nil {
		return "", err
	}
	return condition(walkNamespace, "from-before", "False")(ctx, s)
}

// leaveAndReturn labels a running pod out of the mesh, and in again.
func leaveAndReturn(ctx context.Context, s *suite) (string, error) {
	if err := s.apply(ctx, strictWalk); err != nil {
		return "", err
	}
	if err := s.start(ctx, 45*time.Second, spec{namespace: walkNamespace, name: "leaver", node: s.node("a"), command: "serve --http 9080"}); err != nil {
		return "", err
	}
	ref := walkNamespace + "/leaver"
	from, err := s.near(auditor, ref, acrossNodes)
	if err != nil {
		return "", err
	}
	url := page(s.pods[ref].at(4, 9080), "")
	var got []string
	for _, step := range []struct{ label, outcome, annotation string }{
		{"", wantRefused, "enabled"},
		{"istio.io/dataplane-mode=none", wantOK, ""},
		{"istio.io/dataplane-mode-", wantRefused, "enabled"},
	} {
		if step.label != "" {
			if _, err := s.kubectl(ctx, "label", "pod", "leaver", "--namespace="+walkNamespace, step.label); err != nil {
				return "", err
			}
		}
		said, err := s.want(ctx, comeTrue, from, step.outcome, url)
		got = append(got, said)
		if err == nil {
			_, err = annotation(ref, step.annotation)(ctx, s)
		}
		if err != nil {
			return strings.Join(got, ", "), fmt.Errorf("after label %q: %w", step.label, err)
		}
	}
	return strings.Join(got, ", "), nil
}
