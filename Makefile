# `make help` lists what can be done. Everything needs Linux and Go 1.21 or newer; Go fetches the
# toolchain that go.mod names by itself.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO ?= go
# Arguments for demo and bench: make bench ARGS='--rounds 3'
ARGS ?=
# The image's tag.
VERSION ?= dev
# Packages that `make test` tests.
PACKAGES ?= ./...

# Debian's Go packages switch the fetching of toolchains off by default. Whoever sets it means it.
export GO
export GOTOOLCHAIN ?= auto
# Where git gives no answer (no commit yet, a checkout of another user), Go must not ask it.
export GOFLAGS := $(GOFLAGS) $(shell git rev-parse HEAD >/dev/null 2>&1 || echo -buildvcs=false)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: go
go: # is a usable Go there?
	@scripts/check-go

.PHONY: build
build: go ## bin/culvert and bin/culvert-cni, static binaries (no C compiler needed)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/culvert ./cmd/culvert-cni

.PHONY: demo
demo: build ## play the walkthrough on this machine (root); ARGS='--keep', ARGS='-o json'
	@scripts/need-root 'make demo' 'it makes network namespaces and attaches BPF programs'
	bin/culvert demo $(ARGS)

.PHONY: test
test: go ## all tests, the privileged ones included (root); PACKAGES=./policy/... for some
	@scripts/test $(PACKAGES)

.PHONY: e2e
e2e: go ## a two-node Kubernetes cluster on this machine, Culvert installed, every row tried (root); ARGS='--keep --only STRICT'
	@scripts/need-root 'make e2e' 'it makes a cluster: network namespaces, containers, BPF programs'
	@scripts/e2e $(ARGS)

.PHONY: e2e-identity
e2e-identity: go ## SVIDs from the real istiod and the real SPIRE, built from their modules (minutes when new); ARGS='-run Rotation -v'
	@scripts/e2e-identity $(ARGS)

.PHONY: bench
bench: go ## direct TCP, a copy relay and HBONE side by side; ARGS='--rounds 3 --duration 2s'
	$(GO) run ./e2e/bench $(ARGS)

.PHONY: bench-ca
bench-ca: go ## certificates a second of the built-in CA over gRPC, medians of five runs; ARGS='-runs 9'
	$(GO) run ./e2e/bench/ca $(ARGS)

.PHONY: bench-scale
bench-scale: build ## what an agent costs with 50,000 pods and 10,000 policies (root, a real API server); ARGS='--pods 5000'
	@scripts/need-root 'make bench-scale' 'it makes network namespaces and attaches BPF programs'
	$(GO) run ./e2e/bench/scale $(ARGS)

.PHONY: manifests
manifests: go ## check daemonset/ against a real API server: kustomize, chart, permissions, kinds of policy
	$(GO) run ./scripts/manifests $(ARGS)

.PHONY: lint
lint: go ## gofmt, go vet, staticcheck, direction of imports
	@scripts/lint

.PHONY: generate
generate: go ## BPF objects and Go bindings, protobuf code (needs clang, llvm, libbpf-dev, protoc)
	@scripts/generate

.PHONY: check-generated
check-generated: go ## is the committed generated code what `make generate` makes? alters nothing
	@scripts/check-generated

.PHONY: image
image: go ## bin/culvert-image.tar and the OCI layout of both architectures, without docker; VERSION=v0.1.0
	$(GO) run ./scripts/image -version "$(VERSION)" $(ARGS)

.PHONY: clean
clean: ## remove what was built; a demo that was kept is removed by `culvert demo down`
	rm -rf bin
