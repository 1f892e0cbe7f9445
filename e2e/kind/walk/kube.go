package walk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

const (
	systemNamespace = "culvert-system"
	rootNamespace   = "istio-system"
	walkNamespace   = "culvert-walk" // enrolled; of the groups beside the walkthrough
	manyNamespace   = "culvert-many" // of the thousand policies
	outside         = "audit"        // not enrolled

	// ours marks all pods, Services and policies of the tests.
	ours = "culvert.test/walk=yes"
)

func (s *suite) kubectl(ctx context.Context, args ...string) (string, error) {
	return s.Cluster.Kubectl(ctx, nil, args...)
}

// apply is kubectl apply -f -.
func (s *suite) apply(ctx context.Context, manifest string) error {
	_, err := s.Cluster.Kubectl(ctx, strings.NewReader(manifest), "apply", "--filename=-")
	return err
}

// remove is kubectl delete -f -.
func (s *suite) remove(ctx context.Context, manifest string) error {
	_, err := s.Cluster.Kubectl(ctx, strings.NewReader(manifest), "delete", "--ignore-not-found", "--wait=false", "--filename=-")
	return err
}

// getJSON reads objects.
func (s *suite) getJSON(ctx context.Context, into any, args ...string) error {
	out, err := s.kubectl(ctx, append([]string{"get", "--output=json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// applyPolicies makes the named policies of the walkthrough hold, and no others of it.
func (s *suite) applyPolicies(ctx context.Context, names ...string) error {
	wanted := map[string]bool{}
	var add []string
	for _, name := range names {
		text, err := demo.Manifest(name)
		if err != nil {
			return err
		}
		wanted[name] = true
		add = append(add, string(text))
	}
	var drop []string
	for _, step := range demo.Walkthrough() {
		for _, name := range step.Policies {
			if wanted[name] {
				continue
			}
			wanted[name] = true
			text, err := demo.Manifest(name)
			if err != nil {
				return err
			}
			drop = append(drop, string(text))
		}
	}
	if len(add) > 0 {
		if err := s.apply(ctx, strings.Join(add, "\n---\n")); err != nil {
			return err
		}
	}
	err := s.remove(ctx, strings.Join(drop, "\n---\n"))
	if err != nil && strings.Contains(err.Error(), "no matches for kind") {
		return nil // there are no such kinds, hence no policies
	}
	return err
}

// until asks again until done returns nil, and returns its last error when the time is up.
func until(ctx context.Context, limit time.Duration, done func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	const pause = 250 * time.Millisecond
	for {
		err := done(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

// waitPods waits until all pods that the arguments select are ready.
func (s *suite) waitPods(ctx context.Context, limit time.Duration, args ...string) error {
	_, err := s.kubectl(ctx, append([]string{"wait", "pod", "--for=condition=Ready", "--timeout=" + limit.String()}, args...)...)
	return err
}

// rollout waits until a DaemonSet, a Deployment or a StatefulSet is as it should be.
func (s *suite) rollout(ctx context.Context, object string, limit time.Duration) error {
	_, err := s.kubectl(ctx, "rollout", "status", object, "--namespace="+systemNamespace, "--timeout="+limit.String())
	return err
}

// ready waits until agents, tunnels and CA are.
func (s *suite) ready(ctx context.Context, limit time.Duration) error {
	for _, object := range []string{"daemonset/culvert-agent", "deployment/culvert-ca", "daemonset/culvert-tunnel"} {
		if err := s.rollout(ctx, object, limit); err != nil {
			return fmt.Errorf("%s is not ready: %w", object, err)
		}
	}
	return nil
}

// systemPods returns the names of the pods of a component by node.
func (s *suite) systemPods(ctx context.Context, component string) (map[string]string, error) {
	var list podList
	err := s.getJSON(ctx, &list, "pods", "--namespace="+systemNamespace, "--selector=app.kubernetes.io/component="+component)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, p := range list.Items {
		if p.Metadata.DeletionTimestamp == "" {
			names[p.Spec.NodeName] = p.Metadata.Name
		}
	}
	return names, nil
}
