package demo

import (
	"context"
	"fmt"
)

// outcome is what the client of a row experiences.
type outcome string

const (
	succeeds outcome = "ok"
	refused  outcome = "refused" // ECONNREFUSED: the receiving kernel answers the SYN
	rejected outcome = "reset"   // ECONNREFUSED or an immediate reset: the sending side refuses
)

// How a connection was carried, in the words of the tunnel's log.
const (
	byMTLS      = "mtls"
	bySameNode  = "same-node" // both identities authorised as on the wire, sockets joined
	byPlaintext = "plaintext"
)

const outsideMesh = "not in the mesh"

// check is one request of a step and what has to come of it.
type check struct {
	from, to string
	port     uint16
	service  bool // to the Service's address instead of the pod's
	want     outcome
	carried  string // when it succeeds; byMTLS means bySameNode between pods of one node
	decided  string // the policy that has to be named; empty: any
}

func (c check) target() string {
	kind := ""
	if c.service {
		kind = " (Service)"
	}
	return fmt.Sprintf("%s:%d%s", c.to, c.port, kind)
}

// step is a state of the configuration and what has to hold in it.
type step struct {
	name     string
	policies []string
	checks   []check
	play     func(context.Context, *player, step) error // in place of checks
}

const (
	nginx       = "test/nginx"
	legacyApp   = "test/legacy-app"
	productpage = "default/productpage"
	reviews     = "default/reviews"
	payment     = "default/payment"
	frontend    = "web/frontend"
	auditor     = "audit/auditor"
)

func mtls(from, to string, port uint16, decided string) check {
	return check{from: from, to: to, port: port, service: true, want: succeeds, carried: byMTLS, decided: decided}
}

func plaintext(from, to string, port uint16, decided string) check {
	return check{from: from, to: to, port: port, want: succeeds, carried: byPlaintext, decided: decided}
}

func deny(from, to string, port uint16, decided string) check {
	return check{from: from, to: to, port: port, want: refused, decided: decided}
}

func (c check) atService() check { c.service = true; return c }
func (c check) atPod() check     { c.service = false; return c }

// walkthrough is the table of the README.
func walkthrough() []step {
	return append(append(peerAuthenticationSteps(), destinationRuleSteps()...),
		step{name: "payment", policies: []string{"default-strict", "payment-audit", "payment-istio-mutual"}, checks: []check{
			mtls(frontend, payment, 9080, ""),
			mtls(frontend, payment, 9090, ""),
			plaintext(auditor, payment, 9090, "default/payment-audit"),
			deny(auditor, payment, 9080, "default/payment-audit"),
			deny(legacyApp, payment, 9080, "default/payment-audit"),
			deny(auditor, reviews, 9090, "default/default-strict"),
		}},
		step{name: "open connection", play: playOpenConnection},
		step{name: "rotation", policies: []string{"default-strict"}, play: playRotation},
	)
}

func peerAuthenticationSteps() []step {
	return []step{
		{name: "baseline", checks: []check{
			mtls(nginx, productpage, 9080, "default"),
			mtls(nginx, productpage, 9080, "default").atPod(),
			plaintext(legacyApp, productpage, 9080, "default"),
			mtls(reviews, productpage, 9080, "default"),
			plaintext(auditor, productpage, 9080, "default"),
			plaintext(nginx, legacyApp, 9080, "").atService(),
		}},
		{name: "namespace STRICT", policies: []string{"default-strict"}, checks: []check{
			mtls(nginx, productpage, 9080, "default/default-strict"),
			deny(legacyApp, productpage, 9080, "default/default-strict"),
			mtls(reviews, productpage, 9080, "default/default-strict"),
			deny(auditor, productpage, 9080, "default/default-strict"),
			plaintext(legacyApp, nginx, 9080, "default"),
		}},
		{name: "workload PERMISSIVE", policies: []string{"default-strict", "productpage-permissive"}, checks: []check{
			mtls(nginx, productpage, 9080, "default/productpage-permissive"),
			plaintext(legacyApp, productpage, 9080, "default/productpage-permissive"),
			deny(legacyApp, reviews, 9080, "default/default-strict"),
		}},
		{name: "mesh-wide STRICT", policies: []string{"mesh-wide-strict"}, checks: []check{
			mtls(nginx, productpage, 9080, "istio-system/mesh-wide-strict"),
			deny(legacyApp, productpage, 9080, "istio-system/mesh-wide-strict"),
			deny(legacyApp, nginx, 9080, "istio-system/mesh-wide-strict"),
			deny(legacyApp, frontend, 9080, "istio-system/mesh-wide-strict"),
			deny(legacyApp, payment, 9080, "istio-system/mesh-wide-strict"),
			plaintext(legacyApp, auditor, 9080, outsideMesh),
		}},
		{name: "port level", policies: []string{"productpage-ports"}, checks: []check{
			mtls(nginx, productpage, 9080, "default/productpage-ports"),
			mtls(nginx, productpage, 9090, "default/productpage-ports"),
			plaintext(legacyApp, productpage, 9080, "default/productpage-ports"),
			deny(legacyApp, productpage, 9090, "default/productpage-ports"),
		}},
		{name: "DISABLE", policies: []string{"productpage-disable"}, checks: []check{
			plaintext(nginx, productpage, 9080, "default/productpage-disable").atService(),
			plaintext(legacyApp, productpage, 9080, "default/productpage-disable"),
			plaintext(reviews, productpage, 9080, "default/productpage-disable").atService(),
		}},
	}
}

func destinationRuleSteps() []step {
	return []step{
		{name: "DestinationRule MUTUAL", policies: []string{"productpage-mutual"}, checks: []check{
			mtls(nginx, productpage, 9080, ""),
		}},
		{name: "DestinationRule ISTIO_MUTUAL", policies: []string{"productpage-istio-mutual"}, checks: []check{
			mtls(nginx, productpage, 9080, ""),
		}},
		{name: "DestinationRule DISABLE", policies: []string{"productpage-plaintext"}, checks: []check{
			plaintext(nginx, productpage, 9080, "").atService(),
		}},
		{name: "DestinationRule unmeshed host", policies: []string{"legacy-app-istio-mutual"}, checks: []check{
			{from: nginx, to: legacyApp, port: 9080, service: true, want: rejected},
			mtls(nginx, productpage, 9080, "default"),
		}},
	}
}
