# Rockpool. `make` lists the targets.

GO          ?= go
BIN         := bin
VERSION     := $(shell git describe --tags --always --dirty=-modified 2>/dev/null || echo unknown)
LDFLAGS     := -X rockpool/internal/gateway.release=$(VERSION) -X rockpool/internal/orchestrator.release=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.1
PACKAGES    := ./cmd/... ./internal/... ./pkg/... ./tests/...

.DEFAULT_GOAL := help
.PHONY: help build demo test beside unit e2e costs soak hostile sim vm check lint cross bench bench-grow fmt clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/gateway and bin/orchestrator
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/gateway ./cmd/orchestrator

demo: build ## start everything and run real programs through it (root; ONCE=1 stops by itself, PORT=7201 listens there)
	$(GO) build -o $(BIN)/demo ./tests/demo
	$(BIN)/demo -gateway $(BIN)/gateway $(if $(ONCE),-once) $(if $(PORT),-port $(PORT))

test: ## the whole test suite, also what needs root
	$(MAKE) -j 2 --output-sync=target beside vm
	$(MAKE) -j 1 unit e2e costs

# The emulated machine measures nothing of this one, and leaves a part of it idle.
beside:
	nice -n 10 $(MAKE) check

# Many wait for clocks and processes: one more package at a time than there are cores. What lint vets is not vetted again.
MORE = $$(($$(getconf _NPROCESSORS_ONLN) + 1))
# The race detector sleeps for a second at the end of each process, which is one for each package and more.
unit: export GORACE ?= atexit_sleep_ms=10
unit: ## unit tests with the race detector
	$(GO) test -race -vet=off -p $(MORE) -timeout 4m ./cmd/... ./internal/... ./pkg/...

# One package at a time: they look at processes and control groups of the whole machine.
e2e: ## end-to-end tests against the real binary (root)
	$(GO) test -vet=off -timeout 5m -count 1 -p 1 ./tests/e2e ./tests/hostile ./tests/cluster ./tests/several

# Half a minute of mixed load is enough for what leaks with each act, and two thousand executions for a kilobyte of each; slower growth needs an hour.
costs: export ROCKPOOL_SOAK_MINUTES ?= 0.5
costs: ## nothing costs twice what it did, and nothing grows under load: the short form (root)
	$(GO) test -vet=off -timeout 5m -count 1 -p 1 ./tests/ratio ./tests/soak

soak: export ROCKPOOL_SOAK_MINUTES = $(MINUTES)
soak: MINUTES ?= 60
soak: ## an hour of honest and hostile load, after which nothing may have grown (root; MINUTES=60)
	$(GO) test -timeout 0 -count 1 -v -run TestSoak ./tests/soak

hostile: ## attack a live service and print what held (root; HOSTILE="A1 B4" runs some cases)
	$(GO) test -timeout 5m -count 1 -v ./tests/hostile

sim: export SEEDS ?= 200
sim: export MINUTES ?= 10
sim: export FLAPS ?= 1500
sim: ## simulate clusters in which things go wrong, GPUs included, and 1,000 changes of leader (SEEDS=200 FIRST=1 MINUTES=10 FLAPS=1500; RACE=-race)
	$(GO) test $(RACE) -timeout $$(($(MINUTES) + 60))m -count 1 -v -run 'TestSeeds|TestDevices|TestFlaps' ./internal/orchestrator/sim/chaos

vm: export ROCKPOOL_VM_KERNEL ?= $(CURDIR)/.cache/kernel
vm: ## the sandbox's tests on control groups v2, in an emulated machine (needs qemu and a kernel, says so when it skips)
	$(GO) test -timeout 15m -count 1 -v ./tests/vm

check: lint cross ## formatting, vet, static checks, cross-builds

lint:
	@bad=$$(gofmt -l cmd internal pkg tests); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) vet $(PACKAGES)
	$(GO) vet -tags gpu ./tests/e2e
	$(GO) run $(STATICCHECK) $(PACKAGES)

cross: ## build for every platform that is served
	CGO_ENABLED=0 GOOS=linux  GOARCH=amd64 $(GO) build -o /dev/null ./cmd/gateway
	CGO_ENABLED=0 GOOS=linux  GOARCH=arm64 $(GO) build -o /dev/null ./cmd/gateway
	CGO_ENABLED=0 GOOS=darwin GOARCH=amd64 $(GO) build -o /dev/null ./cmd/orchestrator
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/gateway

bench: build ## measure everything that has a budget, and print one table; OUT=file for benchstat (root; 7 minutes; ONLY=claim,one FOR=3s N=30 DENSITY=500)
	$(GO) build -o $(BIN)/bench ./tests/bench
	$(BIN)/bench -gateway $(BIN)/gateway -orchestrator $(BIN)/orchestrator $(if $(OUT),-out $(OUT)) $(if $(ONLY),-only $(ONLY)) \
		$(if $(FOR),-for $(FOR)) $(if $(N),-n $(N)) $(if $(DENSITY),-density $(DENSITY))

bench-grow: build ## measure and draw cost as work grows, into docs/performance (root; 10 minutes; what is there is kept, remove growth.txt to measure anew; ONLY=runners MOST=1000)
	$(GO) build -o $(BIN)/bench ./tests/bench
	$(BIN)/bench -gateway $(BIN)/gateway -orchestrator $(BIN)/orchestrator -grow docs/performance $(if $(ONLY),-only $(ONLY)) $(if $(MOST),-most $(MOST))

fmt: ## format the code
	gofmt -w cmd internal pkg tests

clean: ## remove what was built
	rm -rf $(BIN)
