# Skerry, from clone to a Ready node. `make` lists the targets; `make run` and `make test` are the two that do everything.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

# The same flags for every Go command, or the Kubernetes packages are compiled again (13 minutes on two cores).
export GOFLAGS := -trimpath -buildvcs=false -tags=no_btrfs,no_zfs,no_devmapper,grpcnotrace
export CGO_ENABLED := 0

OUT     := out
ARCH    := amd64
BOARD   := x86-uefi
KEYS    := $(OUT)/keys
release-of = $(OUT)/release$(if $(filter-out amd64,$1),-$1)
RELEASE := $(call release-of,$(ARCH))
comma   := ,
IMAGE   := $(OUT)/skerry.img
VMDIR   := $(OUT)/run
SKERRY  := $(OUT)/bin/skerry
export PATH := /usr/local/sbin:/usr/sbin:/sbin:$(PATH)

# What image/compose calls the release too: git describe without its v; before the first tag, the number of commits.
VERSION := $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null | sed s/^v// | grep . || \
  echo 0.0.0-$$(git rev-list --count HEAD)-g$$(git rev-parse HEAD | head -c 9)$$(git status --porcelain --untracked-files=no | sed -n '1s/.*/-dirty/p'))
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
TIME    := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
V       := github.com/skerry-os/skerry/pkg/version
LDFLAGS := -s -w -X $(V).version=$(VERSION) -X $(V).commit=$(COMMIT) -X $(V).buildTime=$(TIME)

# Whatever may change a release: every file git knows but tests and texts, and the commit it calls itself by. Links of the
# overlays lead to files of a node, not of this host: their folders stand for them.
SOURCES := $(filter-out %_test.go %.md,$(shell git ls-files -co --exclude-standard cmd init image boards overlays pkg go.mod go.sum | \
  while read -r f; do if [[ -f $$f && ! -L $$f ]]; then echo "$$f"; fi; done; find overlays -type d))

help: ## list these targets
	@echo "Skerry builds signed Kubernetes releases and the disk images that boot them. Begin with: make run"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what builds and tests need (apt, only what is missing)
	@.ci/setup

##################################################  build  ##################################################
$(OUT)/version: FORCE # changes only when the version does
	@mkdir -p $(OUT); echo '$(VERSION) $(COMMIT)' | cmp -s - $@ || echo '$(VERSION) $(COMMIT)' >$@
FORCE:

$(SKERRY): FORCE # go build itself knows whether there is something to do
	@mkdir -p $(@D); go build -ldflags '$(LDFLAGS)' -o $@ ./cmd/skerry

$(KEYS): | setup $(SKERRY)
	@$(SKERRY) keys new $@

# Key folders of before there were updates get the keys for those.
$(KEYS)/repository/root.json: | $(KEYS)
	@test -e $@ || $(SKERRY) keys roles $(KEYS)

$(OUT)/release/manifest.json: $(SOURCES) $(OUT)/version | $(KEYS) $(KEYS)/repository/root.json
	@$(SKERRY) release build --arch amd64 --keys $(KEYS) -o $(@D)

$(OUT)/release-%/manifest.json: $(SOURCES) $(OUT)/version | $(KEYS) $(KEYS)/repository/root.json
	@$(SKERRY) release build --arch $* --keys $(KEYS) -o $(@D)

$(VMDIR)/node.yaml: # a server with a token of its own
	@mkdir -p $(VMDIR); umask 077; { echo "apiVersion: skerry/v1alpha1"; echo "kind: NodeConfig"; echo "role: server"; echo "hostname: skerry"; \
	  echo "cluster: {token: $$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')}"; } >$@

$(IMAGE): $(RELEASE)/manifest.json $(VMDIR)/node.yaml | $(SKERRY)
	@$(SKERRY) image build --board $(BOARD) --release $(RELEASE) --config $(VMDIR)/node.yaml -o $@

programs: setup $(SKERRY) ## build skerry and the node's programs into out/
	@go build -ldflags '$(LDFLAGS)' -o $(OUT)/bin/skerry-pkcs11 ./cmd/skerry-pkcs11
	@$(SKERRY) release programs --arch $(ARCH) -o $(OUT)/$(ARCH)

release: setup $(SKERRY) $(foreach a,$(or $(subst $(comma), ,$(ARCHES)),$(ARCH)),$(call release-of,$a)/manifest.json) ## build and sign a release into out/release; ARCHES=amd64,arm64,arm for several (out/release-arm64, …)

image: release $(IMAGE) ## build a disk image of a server into out/skerry.img

release-check: release # erofs-utils, veritysetup and sbverify look at the release
	@SKERRY_RELEASE=$(abspath $(RELEASE)) SKERRY_KEYS=$(abspath $(KEYS)) go test -count=1 -run TestBuiltRelease ./image/compose

lock: setup $(SKERRY) ## renew the pinned Debian packages (ARCHES=amd64,arm64 for these alone)
	@$(SKERRY) release lock $(if $(ARCHES),--arch $(ARCHES))

reproducible: release ## build the release once more, staged apart, and compare every byte
	@rm -rf $(OUT)/again $(OUT)/again.work; $(SKERRY) release build --quiet --arch $(ARCH) --keys $(KEYS) --work $(OUT)/again.work -o $(OUT)/again
	@diff -r $(RELEASE) $(OUT)/again && echo "ok: both builds have the same bytes" && rm -rf $(OUT)/again $(OUT)/again.work

##################################################  run  ##################################################
run: image ## boot the image in QEMU, wait until the node is Ready, show what runs
	@if [[ -e $(VMDIR)/vm/vm.json && $(VMDIR)/vm/vm.json -ot $(IMAGE) ]]; then $(SKERRY) vm stop --dir $(VMDIR)/vm; fi
	@$(SKERRY) vm status --dir $(VMDIR)/vm 2>/dev/null || $(SKERRY) vm start --dir $(VMDIR)/vm --board $(BOARD) $(IMAGE)
	@$(SKERRY) vm wait --dir $(VMDIR)/vm
	@$(SKERRY) kubeconfig --vm $(VMDIR)/vm --config $(VMDIR)/node.yaml -o $(VMDIR)/kubeconfig
	@echo; $(MAKE) kubectl ARGS='get nodes,pods -A'
	@echo; echo "The node runs on in the background. Go on with:"
	@echo "  make kubectl ARGS='get events -A'   or, with a kubectl of your own: export KUBECONFIG=$(CURDIR)/$(VMDIR)/kubeconfig"
	@echo "  make console                        its serial console"
	@echo "  make stop                           shut it down; make run starts it again with its data"

stop: $(SKERRY) ## shut the machine of make run down
	@$(SKERRY) vm stop --dir $(VMDIR)/vm

console: $(SKERRY) ## open the machine's serial console
	@$(SKERRY) vm console --dir $(VMDIR)/vm

ARGS ?= get nodes,pods -A
kubectl: ## ask the cluster: make kubectl ARGS='get pods -A'
	@$(OUT)/$(ARCH)/usr/bin/kubectl --kubeconfig $(VMDIR)/kubeconfig $(ARGS)

##################################################  check  ##################################################
STAGE := .ci/stage

test: setup ## run the tests, those in QEMU too (CI runs this); what takes hours has targets of its own
	@$(STAGE) 'check: format, vet, lint, import rules, other architectures (the first time compiles Kubernetes: 15 minutes on two cores)' $(MAKE) check
	@$(STAGE) 'quick: unit tests' $(MAKE) quick SKERRY_TOOLS=1
	@$(STAGE) 'fuzz: a thousand inputs of its own to each reader of foreign bytes' $(MAKE) fuzz FUZZTIME=1000x
	@$(STAGE) 'release: kernel, root, component images, signed' $(MAKE) release
	@$(STAGE) 'release: what other programs say of it' $(MAKE) release-check
	@$(STAGE) 'release: the same bytes a second time' $(MAKE) reproducible
	@$(STAGE) 'image: the release as a disk image of a server' $(MAKE) image
	@$(STAGE) 'image: nothing is built a second time' $(MAKE) unchanged
	@$(STAGE) 'native: skerryd as a server on this host' $(MAKE) native
	@$(STAGE) 'nodes: clusters of several nodes, in namespaces of this host' $(MAKE) nodes
	@$(STAGE) 'conformance-quick: thirty of the tests that upstream asks every Kubernetes to pass' $(MAKE) conformance-quick
	@$(STAGE) 'gateway-conformance: all that upstream asks of a Gateway' $(MAKE) gateway-conformance
	@$(STAGE) 'vm: the image in QEMU, from firmware to a pod that outlives a reboot' $(MAKE) vm
	@echo; echo 'ok: all stages'

check: ## format, vet, lint, import rules, builds for other architectures
	@files=$$(gofmt -l cmd init image boards overlays pkg e2e); test -z "$$files" || { echo "not in gofmt's form, run gofmt -w on:"; echo "$$files"; exit 1; }
	go vet ./...
	go tool golangci-lint run ./...
	go test ./pkg/deps
	GOARCH=arm64 go build -o /dev/null ./cmd/skerry && GOARCH=arm64 go build -o /dev/null ./init
	GOARCH=arm GOARM=7 go build -o /dev/null ./cmd/skerry && GOARCH=arm GOARM=7 go build -o /dev/null ./init
	GOOS=darwin GOARCH=arm64 go build -o /dev/null ./cmd/skerry && GOOS=windows go build -o /dev/null ./cmd/skerry

quick: ## unit tests alone
	@go test ./...

# Tests in e2e find what they test in out/. -count=1: what they test is not Go's to cache.
E2E      := go test -count=1 -v -timeout 60m ./e2e
E2E_ARGS := -args -out '$(CURDIR)/$(OUT)'
AS_ROOT  := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$$PATH")

native: programs ## skerryd as a server on this host: its start, components, tools, snapshots (needs root; RUN=regexp)
	@$(AS_ROOT) $(E2E) -run '$(or $(RUN),Native|Engine)' $(E2E_ARGS) -native

nodes: programs ## several skerryd as one cluster, in namespaces of this host (needs root; RUN=regexp)
	@$(AS_ROOT) go test -count=1 -timeout 10m ./e2e/nodes -args -nodes
	@$(AS_ROOT) $(E2E) -run '$(or $(RUN),Nodes)' -skip '$(if $(RUN),^$$,$(NODES_LONG))' $(E2E_ARGS) -nodes

# These wait for certificates to age, for leases to run out, for disks to fill and for members that are gone.
NODES_LONG := NodesLost|NodesDiskFull|NodesRotateCA|NodesRenewAndMove|NodesElection|NodesEtcd|NodesClusterReset
nodes-long: programs ## the clusters that take longer: new authorities, certificates renewed, servers cut off (needs root; twenty minutes)
	@$(AS_ROOT) $(E2E) -run '$(NODES_LONG)' $(E2E_ARGS) -nodes

# Upstream's own tests: FOCUS and SKIP are regular expressions over their names, PARALLEL=1 is one by one, FRESH=1 runs what
# passed before, too. Results are in out/conformance.
CONFORMANCE := go test -count=1 -v -timeout 12h ./e2e/conformance -run TestConformance -args -conformance -out '$(CURDIR)/$(OUT)'
conformance: programs ## upstream's [Conformance] tests, hours (needs root; FOCUS=regexp, SKIP=, PARALLEL=, FRESH=1)
	@$(AS_ROOT) $(CONFORMANCE) $(if $(FOCUS),-focus '$(FOCUS)') $(if $(SKIP),-skip '$(SKIP)') $(if $(PARALLEL),-parallel $(PARALLEL)) $(if $(FRESH),-fresh)

conformance-quick: programs ## thirty of upstream's tests, minutes (needs root)
	@$(AS_ROOT) $(CONFORMANCE) -quick -parallel 8 -agents 0

.PHONY: gateway-conformance
gateway-conformance: programs ## upstream's Gateway API suite against the ingress (needs root; minutes; FOCUS=test for one)
	@$(AS_ROOT) go test -count=1 -v -timeout 75m ./e2e/gatewayapi -args -out '$(CURDIR)/$(OUT)' -focus '$(FOCUS)'

vm: image ## the image in QEMU
	@go test -count=1 -timeout 10m ./e2e/vm -args -vm
	@$(E2E) -run '^Test(Image|ADamagedRoot|AForged)' $(E2E_ARGS) -vm

# Microsoft's emulator of blob storage, for a test of what is uploaded to Azure. Where npm is missing, it is skipped.
AZURITE := $(OUT)/azurite/node_modules/.bin/azurite-blob
$(AZURITE):
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(OUT)/azurite azurite@3.35.0; \
	  else echo 'npm is not installed; the test with Azurite is left out'; fi

.PHONY: test-clouds
test-clouds: programs | $(AZURITE) $(KEYS) $(KEYS)/repository/root.json ## formats, metadata services, publishing; each cloud's image in QEMU, to Ready (needs root; an hour without KVM; CLOUD=aws,gcp for some)
	@$(SKERRY) release build --quiet --clouds --arch $(ARCH) --keys $(KEYS) -o $(RELEASE)
	@SKERRY_TOOLS=1 SKERRY_AZURITE=$$(ls $(abspath $(AZURITE)) 2>/dev/null) $(AS_ROOT) go test -count=1 ./image/cloud/... ./pkg/platform ./pkg/lostnodes
	@go test -count=1 -run 'Scripts/(publish|image-clouds)|CloudsPage' ./cmd/skerry
	@$(AS_ROOT) go test -count=1 -v -timeout 3h ./e2e -run '$(or $(RUN),Cloud|NodesLost)' $(E2E_ARGS) -vm -nodes -cloud '$(CLOUD)'

vm-update: image ## update the image in QEMU: good releases, bad ones, a stick, a damaged kernel, a damaged root, a lost plug (an hour; RUN=regexp)
	@$(SKERRY) release build --quiet --version 99.0.0 --arch $(ARCH) --keys $(KEYS) -o $(OUT)/next
	@go test -count=1 -v -timeout 3h ./e2e -run '$(or $(RUN),UpdateOverTheWire|AStick|BrokenReleases|AKernelThat|ADamagedSlot|TheFloor|PowerCuts)' $(E2E_ARGS) -update-vm

.PHONY: vm-wifi
vm-wifi: image programs ## join wireless networks in QEMU: WPA2, WPA3, wrong keys
	@go test -count=1 -v -timeout 2h ./e2e -run '^TestWiFi$$' $(E2E_ARGS) -vm

.PHONY: test-debug
test-debug: programs $(VMDIR)/node.yaml | $(KEYS) $(KEYS)/repository/root.json ## a release with a shell: on the console and over SSH, and nowhere in other releases; in QEMU, to Ready
	@go test -count=1 ./cmd/skerry-debug
	@$(SKERRY) release build --quiet --debug --arch amd64 --keys $(KEYS) -o $(OUT)/release-debug
	@SKERRY_RELEASE=$(abspath $(OUT)/release-debug) SKERRY_KEYS=$(abspath $(KEYS)) go test -count=1 -run TestBuiltRelease ./image/compose
	@$(E2E) -run '^TestDebug' $(E2E_ARGS) -vm

.PHONY: test-pxe
test-pxe: setup programs release $(OUT)/release-arm64/manifest.json ## start empty machines in QEMU over the network, to Ready (needs root; half an hour without KVM; RUN=regexp)
	@$(AS_ROOT) go test -count=1 -v -timeout 3h ./e2e/netboot -run '$(or $(RUN),.)' -args -netboot -out '$(CURDIR)/$(OUT)'

.PHONY: test-fleet
test-fleet: programs image $(OUT)/release-arm64/manifest.json ## a fleet of four machines in QEMU: one cluster, updated by plans (needs root; an hour without KVM)
	@$(SKERRY) release build --quiet --version 99.0.0 --arch $(ARCH) --keys $(KEYS) -o $(OUT)/next
	@$(AS_ROOT) go test -count=1 -v -timeout 3h ./e2e -run FleetOfMachines $(E2E_ARGS) -fleet-vm

# Boards that QEMU can be, each from its own image: BOARD=arm64-uefi for one, UNTIL=stage2 to leave Kubernetes out of it. The
# first time compiles Kubernetes for the other architectures.
BOARDS_ARM64 := arm64-uefi rpi3
BOARDS_ARM   := orangepi-pc
BOARDS_AMD64 := x86-bios
TEST_BOARDS  := $(if $(filter command,$(firstword $(origin BOARD))),$(BOARD),$(BOARDS_ARM64) $(BOARDS_ARM) $(BOARDS_AMD64))
$(foreach b,$(BOARDS_ARM64),$(eval $(OUT)/boards/$(b).img: $(OUT)/release-arm64/manifest.json))
$(foreach b,$(BOARDS_ARM),$(eval $(OUT)/boards/$(b).img: $(OUT)/release-arm/manifest.json))
$(foreach b,$(BOARDS_AMD64),$(eval $(OUT)/boards/$(b).img: $(RELEASE)/manifest.json))
$(OUT)/boards/%.img: $(VMDIR)/node.yaml | $(SKERRY)
	@mkdir -p $(@D); $(SKERRY) image build --board $* --release $(dir $(filter %/manifest.json,$^)) --config $(VMDIR)/node.yaml -o $@

TEST_RELEASES := $(if $(filter $(BOARDS_ARM64),$(TEST_BOARDS)),release-arm64) $(if $(filter $(BOARDS_ARM),$(TEST_BOARDS)),release-arm)
.PHONY: test-boards
test-boards: programs $(TEST_BOARDS:%=$(OUT)/boards/%.img) ## boot the images of ARM boards, and of a PC with a BIOS, in QEMU, as servers and as agents (needs root; hours; BOARD=id, UNTIL=stage2, RUN=regexp)
	@for r in $(TEST_RELEASES:%=$(abspath $(OUT))/%); do SKERRY_RELEASE=$$r SKERRY_KEYS=$(abspath $(KEYS)) SKERRY_IMAGES='$(TEST_BOARDS:%=$(abspath $(OUT))/boards/%.img)' \
	  go test -count=1 -run TestBuilt ./image/compose; done
	@$(AS_ROOT) go test -count=1 -v -timeout 4h ./e2e -run '$(or $(RUN),TestBoard)' -args -out '$(CURDIR)/$(OUT)' -board '$(shell echo $(TEST_BOARDS) | tr ' ' ,)' -board-until '$(or $(UNTIL),ready)'

SEED ?= 1
powercut: ## cut the power at every write of an update; SEED=n repeats one, TRIES=n looks at more
	@go test -count=1 -v -timeout 60m -run 'PowerCut' ./pkg/update -args -seed $(SEED) -tries $(or $(TRIES),100)

FUZZTIME ?= 1m
fuzz: ## feed every reader of foreign bytes with garbage; FUZZTIME=10m for longer, 1000x for a number
	@for p in $$(grep -rl --include=*_test.go '^func Fuzz' cmd init image boards pkg | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -rhoE --include=*_test.go '^func Fuzz[A-Za-z0-9]+' $$p/*_test.go | sed 's/func //'); do \
	    echo "== $$p $$f"; go test -run XXX -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) ./$$p || exit 1; done; done

NEW ?= $(OUT)/next
delta: ## say what travels from release OLD to release NEW
	@go test -count=1 -v -run Numbers ./pkg/delta -args -old '$(abspath $(or $(OLD),$(RELEASE)))' -new '$(abspath $(NEW))'

bench: image ## print the tables of sizes and times, upstream's own programs beside ours (needs root; half an hour)
	@go test -count=1 -v -run Compare ./pkg/gateway/proxy -args -compare
	@$(AS_ROOT) $(E2E) -run Numbers $(E2E_ARGS) -numbers -native -vm
	@echo; echo 'datastores: 16 writers, objects of 1 KiB, every answered write on the disk'; go test -count=1 -v -run Numbers ./pkg/datastore -args -numbers | grep '^|'
	@echo; echo 'a fleet of a thousand nodes: seconds, and bytes beside the image'; go test ./image/fleet -run xxx -bench 1000 -benchtime 1x | grep -E '^Benchmark|/op'
	@echo; echo 'next to the programs of upstream (e2e/stock/COMPARED.md)'; $(MAKE) compare

# Kubernetes as upstream ships it: a program for each component, from the module that skerryd is built from.
STOCK := kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy
stock: setup # for compare
	@mkdir -p $(OUT)/stock; go build -ldflags '-s -w' -o $(OUT)/stock/ $(STOCK:%=k8s.io/kubernetes/cmd/%) github.com/containerd/containerd/v2/cmd/containerd
	@go build -ldflags '-s -w' -o $(OUT)/stock/etcd go.etcd.io/etcd/server/v3

compare: programs stock ## print skerryd next to upstream's own programs: start, memory, writes, 200 agents (needs root; half an hour)
	@$(AS_ROOT) go test -count=1 -v -timeout 90m -run Compare ./e2e/stock -args -compare -out '$(CURDIR)/$(OUT)' | grep -v '^=== '

unchanged: image # a second `make image` leaves the first one's image alone, or make run would lose the machine's data
	@before=$$(stat -c %y $(IMAGE)); $(MAKE) image; \
	  test "$$before" = "$$(stat -c %y $(IMAGE))" || { echo "$(IMAGE) was built again though nothing changed; make --debug=b image says why"; exit 1; }

golden: ## rewrite the golden files of tests; read the diff before you commit it
	@go test ./image -run Golden -args -update
	@go test ./pkg/machine -run Golden -args -update
	@go test ./image/fleet -run 'Faults|NodeConfigs|New' -args -update
	@go test ./cmd/skerryd/internal/settings -run Table -args -update

clean: ## remove out/ but the keys
	@test ! -d $(OUT) || find $(OUT) -mindepth 1 -maxdepth 1 ! -name keys -exec rm -rf {} +

.PHONY: help setup programs release release-check image lock reproducible run stop console kubectl check test quick native nodes nodes-long conformance conformance-quick vm vm-update powercut fuzz delta unchanged bench golden stock compare clean FORCE
