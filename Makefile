# Holdfast. `make help` lists the targets. All that is needed is Go and git:
# what the demo and the tests run against is built here, pinned by hack/*/go.mod,
# once, and kept in $(TOOLS).

SHELL       := /bin/sh
GO          ?= go
export CGO_ENABLED := 0
export GOTOOLCHAIN := local
TOOLS       ?= $(or $(HOLDFAST_TOOLS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/holdfast/tools)
export HOLDFAST_TOOLS := $(TOOLS)
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)
PACKAGES    ?= ./...
FUZZTIME    ?= 2m
BENCH       ?= 100,500
SOAK        ?= 30m

.DEFAULT_GOAL := help
.PHONY: help build image install demo test test-race fuzz bench soak lint docs tools clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/holdfast
	@echo "build: bin/holdfast (a few minutes the first time: its libraries are large)"
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

# The same commit gives the same digest: nothing in the image depends on when, where
# or by whom it was built. PLATFORMS="linux/amd64 linux/arm64" builds for both, and
# PUSH=registry.example.com/holdfast/holdfast:1.0 pushes as well.
IMAGE       ?= dist/holdfast-image.tar
PLATFORMS   ?= linux/$(shell $(GO) env GOARCH)
REVISION    := $(shell git rev-parse HEAD 2>/dev/null)
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

image: ## build the container image without Docker, as an OCI archive; print its digest
	@set -e; for p in $(PLATFORMS); do \
	  echo "image: building for $$p" >&2; \
	  GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS) -buildid=' -o dist/$$p/holdfast ./cmd/holdfast; \
	  binaries="$$binaries -binary $$p=dist/$$p/holdfast"; \
	done; \
	$(GO) run ./internal/image $$binaries -version $(VERSION) -revision '$(REVISION)' -date $(SOURCE_DATE_EPOCH) -o $(IMAGE) -push '$(PUSH)'

# Installs for systemd below DESTDIR; see docs/getting-started.md. The operator's file is yours to write.
install: ## install the built binary and the systemd unit (as root, or with DESTDIR=)
	@test -x bin/holdfast || { echo "install: run make build first" >&2; exit 1; }
	@install -D -m 0755 bin/holdfast $(DESTDIR)/usr/local/bin/holdfast
	@install -D -m 0644 deploy/holdfast.service $(DESTDIR)/etc/systemd/system/holdfast.service
	@install -D -m 0644 deploy/holdfast.sysusers $(DESTDIR)/usr/lib/sysusers.d/holdfast.conf
	@install -D -m 0644 deploy/holdfast.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/holdfast.conf

demo: tools build ## set everything up on loopback and tell the whole story
	@bin/holdfast demo

test: tools ## run every test on real parts
	@echo "test: $(PACKAGES)"
	@$(GO) test -timeout 40m $(TESTFLAGS) $(PACKAGES)

test-race: tools ## run the tests with the race detector (needs a C compiler)
	@CGO_ENABLED=1 $(GO) test -race -timeout 30m $(TESTFLAGS) $(PACKAGES)

fuzz: ## fuzz every parser for FUZZTIME (2m)
	@for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$p/*_test.go | cut -c6- | sort -u); do \
	    echo "fuzz: $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; \
	  done; done

bench: tools build ## measure on the real control plane, beside the floor; BENCH=100,500
	@$(GO) run ./internal/bench -apps $(BENCH) -holdfast bin/holdfast
	@$(GO) test -run '^$$' -bench . ./verify/verifytest

soak: tools build ## kill the daemon 200 times under load, then run it for SOAK (30m) beside servers that fail
	@$(GO) run ./internal/soak -for $(SOAK) -kills 200 -holdfast bin/holdfast

lint: $(TOOLS)/golangci-lint ## run the linters of .golangci.yml
	@$(TOOLS)/golangci-lint run --timeout 15m $(PACKAGES)

docs: build ## write docs/reference from the types of the configuration
	@mkdir -p docs/reference
	@for f in operator stack; do bin/holdfast check --reference $$f > docs/reference/$$f.md || exit 1; done

# --- what the demo and the tests run against ---------------------------------

TOOL_NAMES := controlplane kwok terraform-provider-local terraform-provider-time tofu conftest cosign2 cosign3 notation prometheus promtool

tools: $(addprefix $(TOOLS)/,$(TOOL_NAMES)) ## build the control plane, OpenTofu, providers, conftest, cosign, notation, Prometheus (once, some minutes)

controlplane_PKG             := .
kwok_PKG                     := sigs.k8s.io/kwok/cmd/kwok
terraform-provider-local_PKG := ./local
terraform-provider-time_PKG  := github.com/hashicorp/terraform-provider-time
tofu_PKG                     := github.com/opentofu/opentofu/cmd/tofu
conftest_PKG                 := github.com/open-policy-agent/conftest
cosign2_PKG                  := github.com/sigstore/cosign/v2/cmd/cosign
cosign3_PKG                  := github.com/sigstore/cosign/v3/cmd/cosign
notation_PKG                 := github.com/notaryproject/notation/cmd/notation
prometheus_PKG               := github.com/prometheus/prometheus/cmd/prometheus
prometheus_TAGS              := remove_all_sd
promtool_PKG                 := github.com/prometheus/prometheus/cmd/promtool
promtool_TAGS                := remove_all_sd
golangci-lint_PKG            := github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(TOOLS)/controlplane: hack/controlplane/go.mod hack/controlplane/go.sum $(wildcard hack/controlplane/*.go)
$(TOOLS)/kwok: hack/kwok/go.mod hack/kwok/go.sum
$(TOOLS)/terraform-provider-local: hack/providers/go.mod hack/providers/go.sum hack/providers/local/main.go
$(TOOLS)/terraform-provider-time: hack/providers/go.mod hack/providers/go.sum
$(TOOLS)/tofu: hack/tofu/go.mod hack/tofu/go.sum
$(TOOLS)/conftest: hack/conftest/go.mod hack/conftest/go.sum
$(TOOLS)/cosign2: hack/cosign2/go.mod hack/cosign2/go.sum
$(TOOLS)/cosign3: hack/cosign3/go.mod hack/cosign3/go.sum
$(TOOLS)/notation: hack/notation/go.mod hack/notation/go.sum
$(TOOLS)/prometheus $(TOOLS)/promtool: hack/prometheus/go.mod hack/prometheus/go.sum
$(TOOLS)/golangci-lint: hack/lint/go.mod hack/lint/go.sum

# A tool is built again when the content of its module changed, not when a clone
# gave its files a new date: the name of the stamp is a hash of the content.
$(TOOLS)/%:
	@mkdir -p $(TOOLS)/.stamps
	@sum=$$(cat $^ | git hash-object --stdin); stamp=$(TOOLS)/.stamps/$*-$$sum; \
	if [ -x $@ ] && [ -e $$stamp ]; then touch $@; else \
	  start=$$(date +%s); echo "tools: building $* ..."; \
	  (cd $(dir $<) && $(GO) build -trimpath -tags='$($*_TAGS)' -ldflags='-s -w' -o $@.new $($*_PKG)) && mv $@.new $@ && touch $$stamp && \
	  echo "tools: built $* in $$(( $$(date +%s) - start )) s"; fi

clean: ## remove what was built here; the tools in $(TOOLS) stay
	@rm -rf bin dist
