# Cassandra Security Manager. `make help` lists what there is.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory
# vet, staticcheck and tests share one build cache with the programs
export GOFLAGS := -trimpath

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CLI     := github.com/cassandra-security-manager/csm/shared/cli
LDFLAGS := -s -w -X $(CLI).Version=$(VERSION)
# One set of flags for programs and tests, so that nothing is compiled twice.
export CGO_ENABLED := 0
GO      := go
BUILD   := $(GO) build -ldflags "$(LDFLAGS)"
BIN     := build/bin
TOOL    := go tool -modfile=$(CURDIR)/test/tools/go.mod
# Packages of our own code; generated code is checked by `make proto-fresh`.
PACKAGES = $(shell go list ./... | grep -v /protocol/)

.DEFAULT_GOAL := help
.PHONY: help setup prepare build cross packages run test test-packages test-full model mutants race race-full fuzz lint proto proto-fresh java openapi bench bench-full drill-rotation clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## install what is missing (JDK 17, Maven, openssl, spin) or name the command
	@test/setup.sh

build: ## the three programs into build/bin, and the agent for linux/arm64 and windows/amd64
	@mkdir -p $(BIN)
	$(BUILD) -o $(BIN)/ ./controller/cmd/csm-controller ./controller/cmd/csm ./agent/cmd/csm-agent
	@$(MAKE) cross

cross:
	GOOS=linux GOARCH=arm64 $(BUILD) -o $(BIN)/csm-agent-linux-arm64 ./agent/cmd/csm-agent
	GOOS=windows GOARCH=amd64 $(BUILD) -o $(BIN)/csm-agent-windows-amd64.exe ./agent/cmd/csm-agent

HOST_ARCH        = $(shell go env GOHOSTARCH)
PACKAGE_ARCH    ?= $(HOST_ARCH)
PACKAGE_VERSION ?= $(shell packaging/version.sh)
NFPM             = build/tools/nfpm

packages: ## deb and rpm of the three programs into build/packages (PACKAGE_ARCH=amd64|arm64)
	@mkdir -p $(BIN)/$(PACKAGE_ARCH) $(BIN)/$(HOST_ARCH) build/tools
	cd test/tools && go build -o ../../build/tools/ github.com/goreleaser/nfpm/v2/cmd/nfpm
	@[ $(PACKAGE_ARCH) = $(HOST_ARCH) ] || $(BUILD) -o $(BIN)/$(HOST_ARCH)/ ./controller/cmd/csm-controller ./controller/cmd/csm ./agent/cmd/csm-agent
	GOOS=linux GOARCH=$(PACKAGE_ARCH) $(BUILD) -o $(BIN)/$(PACKAGE_ARCH)/ ./controller/cmd/csm-controller ./controller/cmd/csm ./agent/cmd/csm-agent
	BINARIES=$(BIN)/$(PACKAGE_ARCH) HOST_BINARIES=$(BIN)/$(HOST_ARCH) PACKAGE_ARCH=$(PACKAGE_ARCH) PACKAGE_VERSION=$(PACKAGE_VERSION) NFPM=$(NFPM) packaging/build.sh

run: setup ## three regions and a real Cassandra ring: issue, install, hot-reload, prove, rotate, break
	@mkdir -p $(BIN)
	@$(BUILD) -o $(BIN)/ ./controller/cmd/csm-controller ./controller/cmd/csm ./agent/cmd/csm-agent ./test/demo
	@exec $(BIN)/demo -bin $(BIN)

# Lint vets, so tests do not.
TEST = $(GO) test -vet=off

# -p 1 leaves each package the whole machine; what is compiled before it is compiled two at a time.
prepare: setup ## what the tests share: the programs, the packages' tool and a Cassandra, so that no test's time holds them
	@mkdir -p $(BIN) build/tools
	@$(BUILD) -o $(BIN)/ ./controller/cmd/csm-controller ./controller/cmd/csm ./agent/cmd/csm-agent
	@cd test/tools && go build -o ../../build/tools/ github.com/goreleaser/nfpm/v2/cmd/nfpm
	@$(GO) list -test -export ./... >/dev/null
	@go run ./test/ring/prepare

test: prepare ## every test that fits into minutes, then the whole path on a real ring (make run)
	$(TEST) -timeout 15m -p 1 ./...
	CI=true $(MAKE) run

test-packages: setup ## install, upgrade, downgrade, remove and purge under a real systemd (root, systemd-nspawn, debootstrap), with a real Cassandra
	CSM_TEST_PACKAGES=1 $(TEST) -timeout 20m -count=1 -run UnderSystemd ./test/packages

model: setup ## search the models of install and rotation, the largest too; prints the outage behind each gate
	CSM_TEST_FULL=1 $(GO) test -timeout 30m -count=1 -v ./test/model

mutants: ## take each gate of the code out in turn: the tests of its package must notice
	CSM_TEST_MUTANTS=all $(GO) test -timeout 4h -count=1 -v -run Mutants ./test/model

test-full: test test-packages ## also what takes longer: Cassandra's own polls, the lives of nodes on a real ring, long soaks
	CSM_TEST_FULL=1 $(TEST) -timeout 60m -p 1 -count=1 ./test/... ./agent/... ./controller/fleet/... ./controller/systemca
	@test/fuzz.sh 30s all

# Left out of `make race`: packages whose tests live by raft's timers or replay thousands of transactions, which the
# detector slows tenfold. `make race-full` runs them too; give it a quiet machine.
RACE = ./shared/... ./protocol/bounds ./agent/node ./agent/state ./agent/sync ./agent/watch ./agent/probe ./agent/reload \
	./controller/people ./controller/keyring ./controller/ledger ./controller/consensus/wal

race: ## the race detector over the packages that are quick under it
	@CGO_ENABLED=1 $(GO) list -race -test -export $(RACE) >/dev/null
	CGO_ENABLED=1 $(TEST) -race -short -timeout 15m -p 1 $(RACE)

race-full: ## the race detector over every package but the real ring (half an hour)
	CGO_ENABLED=1 $(TEST) -race -short -timeout 60m -p 1 $$($(GO) list ./... | grep -v -e /protocol/ -e /test/)

fuzz: ## a short fuzz of every parser of outside input (FUZZTIME=10s); `test/fuzz.sh 1m all` guides each by coverage
	@test/fuzz.sh $${FUZZTIME:-10s}

lint: ## gofmt, vet, staticcheck, buf lint, freshness of generated code
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "not gofmt-ed:"; echo "$$bad"; exit 1; fi
	go vet ./...
	$(TOOL) staticcheck $(PACKAGES)
	@$(MAKE) proto-fresh
	cd protocol && ../build/tools/buf lint

proto: ## generate code from protocol/**.proto
	@mkdir -p build/tools && cd test/tools && go build -o ../../build/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc github.com/bufbuild/buf/cmd/buf
	cd protocol && PATH="$(CURDIR)/build/tools:$$PATH" buf generate

proto-fresh: proto
	@git diff --exit-code --stat -- protocol || { echo "generated code is stale: run make proto and commit"; exit 1; }

java: setup ## compile the agent's client of JMX (a test says when it is stale)
	$(GO) test ./agent/reload -run MadeOfItsSource -update

openapi: ## write protocol/rest/openapi.yaml from the code (a test says when it is stale)
	$(GO) test ./controller/api/rest -run OpenAPI -update

bench: setup ## the figures, as a table and build/bench.json
	@mkdir -p $(BIN)
	@$(BUILD) -o $(BIN)/ ./controller/cmd/csm-controller ./controller/cmd/csm ./agent/cmd/csm-agent ./test/bench ./test/fleetsim/cmd/fleetsim
	@mkdir -p $(BIN)/benchmark && $(BUILD) -tags benchmark -o $(BIN)/benchmark/ ./controller/cmd/csm-controller
	@$(BIN)/bench -bin $(BIN) -out build/bench.json

bench-full: bench ## bench, and the figures of 10,000 agents and 30,000 renewals at once: 20 minutes more, into build/bench-full.json
	@$(BIN)/bench -bin $(BIN) -out build/bench-full.json -only fleet,storm -agents 10000

drill-rotation: setup ## replace the root of a real ring of two data centres under load while things break (17 minutes)
	@mkdir -p $(BIN)
	@$(BUILD) -o $(BIN)/ ./controller/cmd/csm-controller ./controller/cmd/csm ./agent/cmd/csm-agent ./test/demo
	@exec $(BIN)/demo -bin $(BIN) -story rotation -dir build/drill

clean: ## remove build/
	rm -rf build
