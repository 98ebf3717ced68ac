# Porchlight. `make help` lists the verbs.

GO ?= go
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Arguments for demo and torture: make demo ARGS="--for 60s --plain"
ARGS ?=
# What to test: make test PKG=./agent/...
PKG ?= ./...
FUZZTIME ?= 20s
# How long to torture the gateway, and which faults: without a seed they are
# others each time, and the seed is printed.
CYCLES ?= 30
SEED ?=
# What to package: make package ARCHES="amd64 armhf"
ARCHES ?=
# The race detector is not there on 32 bits; `make test RACE=` leaves it out.
RACE ?= $(if $(filter amd64 arm64 ppc64le s390x,$(shell $(GO) env GOARCH)),-race)

# Debian keeps servers where the PATH of a plain user does not look.
export PATH := $(PATH):/usr/sbin:/sbin

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
	-ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)'

.PHONY: help
help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: porchlight
porchlight: go ## the program, for this machine
	$(BUILD) -o porchlight ./cmd/porchlight

.PHONY: demo
demo: deps-demo porchlight ## the whole path, live, on this machine, without a network
	./porchlight demo $(ARGS)

.PHONY: test
test: go deps ## everything, against real servers
	$(GO) vet $(PKG)
	$(GO) test $(RACE) -timeout 40m $(PKG)

# The store counts in 64 bits, and its file may be larger than an int is on the
# boards of 32 bits.
.PHONY: test32
test32: go ## the store's tests as a program of 32 bits
	CGO_ENABLED=0 GOARCH=386 $(GO) test -timeout 20m ./agent/outbox

.PHONY: bench
bench: go deps ## throughput, delay and memory
	$(GO) test -run '^$$' -bench . -benchmem -timeout 60m $(PKG)

.PHONY: torture
torture: go deps ## faults of all kinds, and what was acknowledged arrives once: CYCLES=300 SEED=7
	$(GO) run ./torture -cycles $(CYCLES) $(if $(SEED),-seed $(SEED)) $(ARGS)

# What each client shows is left in dist/clients.
.PHONY: clients
clients: go ## clients that people use talk to a lamp
	@scripts/deps.sh clients
	cd agent/testdata/clients && npm ci --ignore-scripts --no-audit --no-fund
	$(GO) test -tags clients -count 1 -run TestClients -v ./agent

.PHONY: cover
cover: go deps ## which lines the tests reach
	@mkdir -p dist
	$(GO) test -coverpkg ./... -coverprofile dist/cover.out -timeout 20m $(PKG)
	$(GO) tool cover -html dist/cover.out -o dist/cover.html

.PHONY: fuzz
fuzz: go ## each fuzz target, 20 seconds; make fuzz FUZZTIME=1h
	@set -e; for pkg in $$($(GO) list $(PKG)); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# Vet for 32 bits finds constants and sizes that do not fit an int there.
.PHONY: lint
lint: go ## format, vet for 32 bits, staticcheck
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "run gofmt -w on:" $$unformatted; exit 1; }
	CGO_ENABLED=0 GOARCH=arm GOARM=6 $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; fi

.PHONY: build
build: dist-amd64 dist-arm64 dist-armv7 dist-armv6 ## static programs for Linux, in dist/

.PHONY: dist-amd64 dist-arm64 dist-armv7 dist-armv6
dist-amd64 dist-arm64: dist-%: go
	GOOS=linux GOARCH=$* $(BUILD) -o dist/porchlight-linux-$* ./cmd/porchlight
dist-armv7 dist-armv6: dist-armv%: go
	GOOS=linux GOARCH=arm GOARM=$* $(BUILD) -o dist/porchlight-linux-armv$* ./cmd/porchlight

.PHONY: package package-twice
package: go ## Debian packages, tarballs, SBOMs and check sums, in dist/package
	@GO=$(GO) scripts/package.sh $(ARCHES)
package-twice: go ## that two builds of a commit, in two places, give the same bytes
	@GO=$(GO) scripts/package-twice.sh $(or $(ARCHES),amd64)

.PHONY: package-test
package-test: go ## the packages in clean systems, as root: install, upgrade, roll back, restore, purge
	@scripts/deps.sh package
	@GO=$(GO) scripts/package-test.sh $(ARCHES)

.PHONY: deps deps-demo
deps: ## Debian packages that the tests and the demo need
	@scripts/deps.sh test
deps-demo: ## only those of the demo
	@scripts/deps.sh demo

.PHONY: clean
clean: ## away with what was built
	rm -rf dist porchlight agent/testdata/clients/node_modules

.PHONY: go
go:
	@command -v $(GO) >/dev/null || { echo "Go is needed, 1.26 or newer: https://go.dev/dl/"; exit 1; }
