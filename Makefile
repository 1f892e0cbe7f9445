# `make help` lists what can be done. Everything needs Linux and Go 1.21 or newer; Go fetches the
# toolchain that go.mod names by itself.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO ?= go
# Arguments for demo and bench: make bench ARGS='--rounds 3'
ARGS ?=
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
build: go ## bin/culvert, a static binary (no C compiler needed)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/culvert ./cmd/culvert

.PHONY: demo
demo: build ## play the walkthrough on this machine (root); ARGS='--keep', ARGS='-o json'
	@scripts/need-root 'make demo' 'it makes network namespaces and attaches BPF programs'
	bin/culvert demo $(ARGS)

.PHONY: test
test: go ## all tests, the privileged ones included (root); PACKAGES=./policy/... for some
	@scripts/test $(PACKAGES)

.PHONY: e2e
e2e: go ## the tests below e2e alone, on network namespaces (root); the kind cluster is a later issue
	@scripts/test ./e2e/...

.PHONY: bench
bench: go ## direct TCP, a copy relay and HBONE side by side; ARGS='--rounds 3 --duration 2s'
	$(GO) run ./e2e/bench $(ARGS)

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
image: # fails: see the message
	@echo 'make image: there is no image yet; it comes with the Kubernetes manifests in daemonset/.' >&2; exit 1

.PHONY: clean
clean: ## remove what was built; a demo that was kept is removed by `culvert demo down`
	rm -rf bin
