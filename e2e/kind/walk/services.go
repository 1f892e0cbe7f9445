package walk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

const (
	webPod      = walkNamespace + "/web"
	webPort     = 9080
	nodePort    = 30980
	balanced    = 8980 // port of the Service with external addresses
	strictWalk  = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: strict\n  namespace: " + walkNamespace + "\nspec:\n  mtls:\n    mode: STRICT\n"
	openWebOnly = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: web-permissive\n  namespace: " + walkNamespace +
		"\nspec:\n  selector:\n    matchLabels:\n      app: web\n  mtls:\n    mode: PERMISSIVE\n"
)

// services asks through all kinds of Services, and from where no pod is.
func services() group {
	permissive := func(ctx context.Context, s *suite) error { return s.apply(ctx, openWebOnly) }
	strict := func(ctx context.Context, s *suite) error { return s.remove(ctx, openWebOnly) }
	g := group{name: "Services", setup: setupServices, teardown: func(ctx context.Context, s *suite) error {
		return errors.Join(strict(ctx, s), s.stop(ctx, walkNamespace, "host-near", "host-far"))
	}}
	for _, where := range []string{sameNode, acrossNodes} {
		g.rows = append(g.rows,
			row{name: "STRICT: ClusterIP by name", where: where, expected: "ok, mTLS", do: meshed(where, "http://web.culvert-walk:9080/")},
			row{name: "STRICT: headless Service", where: where, expected: "ok, mTLS", do: meshed(where, "http://web-headless.culvert-walk:9080/")},
			row{name: "STRICT: hostNetwork client, plaintext", where: where, expected: "refused", do: fromHost(where, wantRefused, nil)},
		)
	}
	g.rows = append(g.rows,
		row{name: "STRICT: NodePort from outside", where: "its node", expected: "refused", nodes: true, do: fromOutside(nodePort, "a", false, nil)},
		row{name: "STRICT: NodePort from outside", where: "other node", expected: "refused", nodes: true, do: fromOutside(nodePort, "b", false, nil)},
		row{name: "STRICT: external address from outside", where: "its node", expected: "refused", nodes: true, do: fromOutside(balanced, "a", false, nil)},
		row{name: "Service without endpoints", where: anywhere, expected: "stopped at once", do: noEndpoints},
		row{name: "PERMISSIVE: NodePort from outside", where: "its node", expected: "ok", nodes: true, do: fromOutside(nodePort, "a", true, permissive)},
		row{name: "PERMISSIVE: NodePort from outside", where: "other node", expected: "ok", nodes: true, do: fromOutside(nodePort, "b", true, nil)},
		row{name: "PERMISSIVE: external address from outside", where: "its node", expected: "ok", nodes: true, do: fromOutside(balanced, "a", true, nil)},
		row{name: "PERMISSIVE: hostNetwork client, plaintext", where: sameNode, expected: "ok", do: fromHost(sameNode, wantOK, permissive)},
		row{name: "PERMISSIVE: hostNetwork client, plaintext", where: acrossNodes, expected: "ok", do: fromHost(acrossNodes, wantOK, nil)},
		row{name: "STRICT again: NodePort from outside", where: "its node", expected: "refused", nodes: true, do: fromOutside(nodePort, "a", false, strict)},
	)
	return g
}

func setupServices(ctx context.Context, s *suite) error {
	out, err := s.kubectl(ctx, "get", "node", s.node("a"), `--output=jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	if err != nil {
		return err
	}
	external := strings.Fields(out)[0]
	docs := []string{
		strictWalk,
		strings.Replace(serviceManifest(walkNamespace, "web", "web", "", webPort), "spec:\n", "spec:\n  type: NodePort\n", 1),
		strings.Replace(serviceManifest(walkNamespace, "web-headless", "web", "", webPort), "spec:\n", "spec:\n  clusterIP: None\n", 1),
		fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: web-external\n  namespace: %s\nspec:\n  type: LoadBalancer\n"+
			"  selector: {app: web}\n  externalIPs: [%q]\n  ports:\n  - {name: web, port: %d, targetPort: %d}\n", walkNamespace, external, balanced, webPort),
		serviceManifest(walkNamespace, "nobody", "nobody", "", webPort),
	}
	docs[1] = strings.Replace(docs[1], fmt.Sprintf("port: %d}", webPort), fmt.Sprintf("port: %d, nodePort: %d}", webPort, nodePort), 1)
	if err := s.apply(ctx, strings.Join(docs, "---\n")); err != nil {
		return err
	}
	return s.start(ctx, time.Minute,
		spec{namespace: walkNamespace, name: "web", node: s.node("a"), account: "web", labels: map[string]string{"app": "web"}, command: "serve --http 9080"},
		spec{namespace: walkNamespace, name: "host-near", node: s.node("a"), host: true, command: "serve --http 18981"},
		spec{namespace: walkNamespace, name: "host-far", node: s.node("b"), host: true, command: "serve --http 18981"},
	)
}

// meshed asks from a pod in the mesh and looks who the tunnels say took part.
func meshed(where, url string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		from, err := s.near(nginx, webPod, where)
		if err != nil {
			return "", err
		}
		var got string
		err = until(ctx, comeTrue, func(ctx context.Context) error {
			begin := time.Now()
			a, err := s.askOnce(ctx, from, url)
			if err != nil {
				return err
			}
			got = a.String()
			if err := a.check(wantOK); err != nil {
				return err
			}
			to := s.pods[webPod]
			e := s.witness(ctx, 3*time.Second, from, netip.AddrPort{}, a, begin)
			got += ", " + e.carried
			if e.source != from.identity() || e.destination != to.identity() {
				return fmt.Errorf("identities %q and %q, want %q and %q", e.source, e.destination, from.identity(), to.identity())
			}
			return nil
		})
		return got, err
	}
}

// fromHost asks from a pod in the network of a node.
func fromHost(where, outcome string, before func(context.Context, *suite) error) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		if before != nil {
			if err := before(ctx, s); err != nil {
				return "", err
			}
		}
		name := map[string]string{sameNode: "host-near", acrossNodes: "host-far"}[where]
		from, err := s.pod(walkNamespace + "/" + name)
		if err != nil {
			return "", err
		}
		urls := []string{"http://web.culvert-walk:9080/"}
		for _, version := range s.versions() {
			urls = append(urls, page(s.pods[webPod].at(version, webPort), ""))
		}
		return s.want(ctx, comeTrue, from, outcome, urls...)
	}
}

// noEndpoints asks a Service that nobody is behind.
func noEndpoints(ctx context.Context, s *suite) (string, error) {
	from, err := s.near(nginx, webPod, acrossNodes)
	if err != nil {
		return "", err
	}
	return s.want(ctx, comeTrue, from, wantStopped, "http://nobody.culvert-walk:9080/")
}

// fromOutside asks at a port of a node's address from the network that the nodes are in, where no pod is.
func fromOutside(port int, letter string, ok bool, before func(context.Context, *suite) error) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		if before != nil {
			if err := before(ctx, s); err != nil {
				return "", err
			}
		}
		out, err := s.kubectl(ctx, "get", "node", s.node(letter), `--output=jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
		if err != nil {
			return "", err
		}
		var got string
		err = until(ctx, comeTrue, func(ctx context.Context) error {
			begin := time.Now()
			said, err := s.dialAndGet(ctx, net.JoinHostPort(strings.Fields(out)[0], fmt.Sprint(port)))
			took := time.Since(begin).Round(time.Millisecond)
			switch {
			case ok && err == nil:
				got = "ok, seen as " + said
				return nil
			case ok:
				got = "failed"
				return err
			case err == nil:
				got = "ok"
				return errors.New("plaintext went through")
			case !errors.Is(err, syscall.ECONNREFUSED) || took > 1500*time.Millisecond:
				got = err.Error()
				return fmt.Errorf("want a refusal at once, got %w after %s", err, took)
			}
			got = "refused"
			return nil
		})
		return got, err
	}
}

// dialAndGet returns how the server sees this machine.
func (s *suite) dialAndGet(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, curlLimit)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: s.Cluster.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return "", err
	}
	_, client2, _ := strings.Cut(string(body), `"Client":"`)
	seen, _, _ := strings.Cut(client2, `"`)
	return seen, nil
}
