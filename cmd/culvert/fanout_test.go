package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestNodesAreAskedSomeAtATimeAndAnswerInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := []agentNode{}
		for i := range 5 * maxAsked {
			nodes = append(nodes, agentNode{name: fmt.Sprintf("n%03d", i)})
		}
		nodes[3].trouble = "it is Pending"
		var running, most atomic.Int32
		begin := time.Now()
		all, err := onEach(t.Context(), nodes, func(ctx context.Context, node string) (*string, error) {
			now := running.Add(1)
			defer running.Add(-1)
			for was := most.Load(); now > was && !most.CompareAndSwap(was, now); was = most.Load() {
			}
			if node == "n001" {
				<-ctx.Done()
				return nil, errors.New("stream closed")
			}
			time.Sleep(time.Second)
			return &node, nil
		})
		if err != nil || most.Load() != maxAsked || time.Since(begin) != nodeTimeout {
			t.Errorf("%v, %d at a time, %s", err, most.Load(), time.Since(begin))
		}
		for i, told := range all {
			switch {
			case told.node != nodes[i].name:
				t.Errorf("place %d has %s", i, told.node)
			case i == 1 && told.err.Error() != "agent of node n001: no answer within 25s", i == 3 && told.err.Error() != "it is Pending":
				t.Errorf("%s: %v", told.node, told.err)
			case i != 1 && i != 3 && (told.err != nil || *told.answer != told.node):
				t.Errorf("%+v", told)
			}
		}
	})
}

func TestInterruptedWhileNodesAreAsked(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := onEach(ctx, []agentNode{{name: "a"}, {name: "b"}}, func(ctx context.Context, _ string) (*string, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestKubeconfigIsFoundAsKubectlFindsIt(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("KUBECONFIG", "")
	if got := asKubectl(""); got != "" || (&reach{}).hasKubeconfig() {
		t.Errorf("none: %q", got)
	}
	if got := asKubectl("/no/such"); got != "/no/such" { // whose absence is to be told
		t.Errorf("named: %q", got)
	}
	t.Setenv("KUBECONFIG", strings.Join([]string{home + "/none", home}, ":"))
	if got := asKubectl(""); got != home || !(&reach{}).hasKubeconfig() {
		t.Errorf("in the environment: %q", got)
	}
}
