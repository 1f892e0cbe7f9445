package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// restartLimit bounds a restart up to the point where the node's system pods run again.
const restartLimit = 4 * time.Minute

// RestartNode restarts a node's container as a whole, which is what a reboot is to it, and waits until the
// node is ready and its system pods have been started anew. Other pods on it may still be starting.
func (c *Cluster) RestartNode(ctx context.Context, node string) error {
	if err := c.checkNode(node); err != nil {
		return fmt.Errorf("cluster: restart: %w", err)
	}
	began := time.Now().Truncate(time.Second) // Kubernetes reports seconds
	if _, err := c.docker(ctx, command{}, "restart", "--time=20", node); err != nil {
		return fmt.Errorf("cluster: restart node %s: %w", node, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, restartLimit, fmt.Errorf("not ready again after %s", restartLimit))
	defer cancel()
	err := poll(ctx, time.Second, func(ctx context.Context) error {
		if err := c.nodeIsBack(ctx, node); err != nil {
			return err
		}
		return c.podsStartedSince(ctx, node, began)
	})
	if err != nil {
		return fmt.Errorf("cluster: restart node %s: %w", node, err)
	}
	return nil
}

// nodeIsBack checks that the node is ready, and that it is the restarted kubelet that says so: a node gets a new
// machine id each time it starts, and the API server remembers the old one until then.
func (c *Cluster) nodeIsBack(ctx context.Context, node string) error {
	id, err := c.exec(ctx, node, command{limit: 10 * time.Second}, "cat", "/etc/machine-id")
	if err != nil {
		return err
	}
	out, err := c.kubectl(ctx, nil, "get", "node", node, "--request-timeout=5s",
		`--output=jsonpath={.status.nodeInfo.machineID} {.status.conditions[?(@.type=="Ready")].status}`)
	if err != nil {
		return err
	}
	if want := strings.TrimSpace(id) + " True"; strings.TrimSpace(out) != want {
		return fmt.Errorf("the kubelet has not reported the node ready: machine id and readiness are %q, not %q", out, want)
	}
	return nil
}

// pods is as much of a list of pods as is looked at here.
type pods struct {
	Items []struct {
		Metadata struct{ Name string }
		Status   struct {
			Phase             string
			ContainerStatuses []struct {
				Name  string
				Ready bool
				State struct {
					Running *struct{ StartedAt time.Time }
				}
			}
		}
	}
}

// podsStartedSince checks that every system pod of the node is ready, and not because of how it was before.
func (c *Cluster) podsStartedSince(ctx context.Context, node string, since time.Time) error {
	out, err := c.kubectl(ctx, nil, "get", "pods", "--namespace=kube-system", "--output=json", "--request-timeout=5s",
		"--field-selector=spec.nodeName="+node)
	if err != nil {
		return err
	}
	var list pods
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return fmt.Errorf("pods of node %s: %w", node, err)
	}
	return list.startedSince(since)
}

func (p pods) startedSince(since time.Time) error {
	if len(p.Items) == 0 {
		return errors.New("no system pod is known on the node")
	}
	for _, pod := range p.Items {
		for _, status := range pod.Status.ContainerStatuses {
			if !status.Ready || status.State.Running == nil || status.State.Running.StartedAt.Before(since) {
				return fmt.Errorf("container %s of pod %s has not become ready since the restart", status.Name, pod.Metadata.Name)
			}
		}
	}
	return nil
}
