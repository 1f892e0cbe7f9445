package walk

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// openConnections has a connection of each kind open while its port turns STRICT.
func openConnections() group {
	return group{name: "open connection", setup: func(ctx context.Context, s *suite) error {
		if err := s.applyPolicies(ctx); err != nil {
			return err
		}
		url := page(s.pods[productpage].at(4, 9080), "open")
		const kept = "--keep-alive --interval 20ms"
		return s.start(ctx, time.Minute,
			looper(outside, "plain-near", s.node("a"), url, kept), looper(outside, "plain-far", s.node("b"), url, kept),
			looper(walkNamespace, "tunnelled-near", s.node("a"), url, kept), looper(walkNamespace, "tunnelled-far", s.node("b"), url, kept))
	}, teardown: func(ctx context.Context, s *suite) error {
		return errors.Join(s.stop(ctx, outside, "plain-near", "plain-far"), s.stop(ctx, walkNamespace, "tunnelled-near", "tunnelled-far"))
	}, rows: []row{
		{name: "plaintext when its port turns STRICT", where: "both", expected: "closed within a second", do: plainCloses},
		{name: "mTLS when its port turns STRICT", where: "both", expected: "stays", do: tunnelledStays},
	}}
}

func plainCloses(ctx context.Context, s *suite) (string, error) {
	refs := []string{outside + "/plain-near", outside + "/plain-far"}
	// They were open: a loop that never got through proves nothing.
	err := until(ctx, 10*time.Second, func(ctx context.Context) error {
		before, err := s.tally(ctx, refs...)
		for ref, c := range before {
			if !c.OK || c.Succeeded < 10 {
				err = errors.Join(err, fmt.Errorf("%s does not get through: %s", ref, c))
			}
		}
		return err
	})
	if err != nil {
		return "", err
	}
	if err := s.applyPolicies(ctx, "default-strict"); err != nil {
		return "", err
	}
	applied := time.Now()
	var slowest time.Duration
	err = until(ctx, 5*time.Second, func(ctx context.Context) error {
		now, err := s.tally(ctx, refs...)
		for ref, c := range now {
			if c.OK {
				err = errors.Join(err, fmt.Errorf("%s still gets through: %s", ref, c))
			}
			slowest = max(slowest, c.Steady.Sub(applied))
		}
		return err
	})
	// kubectl returns after the API server has told the agents: it may be closed already.
	got := "closed " + slowest.Round(time.Millisecond).String() + " after kubectl returned"
	if err == nil && slowest > time.Second {
		err = errors.New("want it closed within a second")
	}
	return got, err
}

func tunnelledStays(ctx context.Context, s *suite) (string, error) {
	refs := []string{walkNamespace + "/tunnelled-near", walkNamespace + "/tunnelled-far"}
	now, err := s.tally(ctx, refs...)
	if err != nil {
		return "", err
	}
	tries := 0
	for ref, c := range now {
		tries += c.Tries
		if c.Failed > 0 || !c.OK {
			return "", fmt.Errorf("%s: %s: %s", ref, c, c.LastError)
		}
		// It is the connection that it was: the tunnels have seen no other.
		opened := 0
		for _, l := range s.logs.lines("tunnel", s.begin) {
			if l.get("msg") == "connection open" && l.get("direction") == "outbound" && l.get("source.workload") == ref {
				opened++
			}
		}
		if opened > 1 {
			return "", fmt.Errorf("%s: opened %d connections", ref, opened)
		}
	}
	return fmt.Sprintf("stays, %d requests", tries), nil
}

// shortLife is the life of certificates while their renewal is looked at.
const shortLife = 24 * time.Second

// rotation has certificates renewed under a connection that stays, and under new ones.
func rotation() group {
	setLife := func(ctx context.Context, s *suite, life string) error {
		if _, err := s.kubectl(ctx, "set", "env", "deployment/culvert-ca", "--namespace="+systemNamespace, "SVID_TTL="+life); err != nil {
			return err
		}
		return s.rollout(ctx, "deployment/culvert-ca", time.Minute)
	}
	return group{name: "rotation", setup: func(ctx context.Context, s *suite) error {
		if err := errors.Join(s.apply(ctx, strictWalk), setLife(ctx, s, shortLife.String())); err != nil {
			return err
		}
		// New identities, which get such certificates from the start.
		if err := s.start(ctx, time.Minute, spec{namespace: walkNamespace, name: "rotated", node: s.node("a"), account: "rotated", command: "serve --http 9080"}); err != nil {
			return err
		}
		url := page(s.pods[walkNamespace+"/rotated"].at(4, 9080), "rotation")
		kept, fresh := looper(walkNamespace, "kept", s.node("b"), url, "--keep-alive --timeout 5s"), looper(walkNamespace, "fresh", s.node("b"), url, "--interval 250ms --timeout 5s")
		kept.account, fresh.account = "rotating", "rotating"
		return s.start(ctx, time.Minute, kept, fresh)
	}, teardown: func(ctx context.Context, s *suite) error {
		return errors.Join(setLife(ctx, s, "24h"), s.stop(ctx, walkNamespace, "rotated", "kept", "fresh"))
	}, rows: []row{
		{name: "certificates of " + shortLife.String() + ", two renewals of both ends", where: acrossNodes, expected: "one connection stays, new ones ok",
			limit: 3 * time.Minute, do: renewals},
	}}
}

func renewals(ctx context.Context, s *suite) (string, error) {
	// Their first requests wait for the first certificates, which is no renewal.
	refs := []string{walkNamespace + "/kept", walkNamespace + "/fresh"}
	if err := s.getThrough(ctx, 20*time.Second, refs...); err != nil {
		return "", err
	}
	before, err := s.tally(ctx, refs...)
	if err != nil {
		return "", err
	}
	begin := time.Now()
	var renewed int
	err = until(ctx, 4*shortLife, func(context.Context) error {
		renewed = -1
		for _, account := range []string{"rotated", "rotating"} {
			n := 0
			for _, l := range s.logs.lines("agent", begin) {
				if l.get("msg") == "SVID issued" && l.get("identity") == "spiffe://cluster.local/ns/"+walkNamespace+"/sa/"+account {
					n++
				}
			}
			if renewed < 0 || n < renewed {
				renewed = n
			}
		}
		if renewed < 2 {
			return fmt.Errorf("%d renewals of both certificates, want 2", renewed)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	// What was signed first has expired by now, for certain.
	if left := shortLife - time.Since(begin); left > 0 {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(left):
		}
	}
	now, err := s.tally(ctx, refs...)
	if err != nil {
		return "", err
	}
	got := ""
	for _, ref := range refs {
		c := now.since(before, ref)
		got += fmt.Sprintf("%s: %s; ", ref, c)
		if c.Failed > 0 || c.Succeeded < 20 {
			err = errors.Join(err, fmt.Errorf("%s: %s: %s", ref, c, c.LastError))
		}
	}
	return fmt.Sprintf("%s%d renewals", got, renewed), err
}
