# Evenkeel: `make help` lists what can be made.
#
# Everything lands in bin/linux-ARCH. The programs that Evenkeel runs but does not contain (runc, the CNI plugins) and
# the linter are pinned by a go.mod and go.sum of their own below build/, so their hashes are checked like any module's.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# sudo resets PATH; Go's own installer puts it here.
export PATH := $(PATH):/usr/local/go/bin
GO := $(shell PATH="$$PATH:/usr/local/go/bin" command -v go || echo go)
export GOFLAGS := -buildvcs=false

HOST_ARCH := $(shell uname -m | sed -e s/x86_64/amd64/ -e s/aarch64/arm64/)
ARCH      ?= $(HOST_ARCH)
BIN       := $(CURDIR)/bin/linux-$(ARCH)

# sudo in a user's clone makes git suspicious of its owner; the version must not depend on that.
DESCRIBE := $(shell git -c safe.directory='*' -C '$(CURDIR)' describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)
COMMIT   := $(shell git -c safe.directory='*' -C '$(CURDIR)' rev-parse --short=10 HEAD 2>/dev/null)
VERSION  ?= $(if $(DESCRIBE),$(DESCRIBE:v%=%),0.1.0-dev$(if $(COMMIT),+g$(COMMIT)))

PREFIX  ?= /usr/local
CNI_DIR ?= /opt/cni/bin
UNITS   ?= /usr/local/lib/systemd/system
DESTDIR ?=

PLUGINS := bridge loopback host-local portmap bandwidth firewall tuning
OURS    := $(BIN)/evenkeel $(BIN)/evenkeel-shim

# What a Debian or Ubuntu machine needs: a C compiler and libseccomp for runc, the rest for the tests and the example.
PACKAGES := gcc libc6-dev libseccomp-dev pkg-config busybox-static iptables nftables iproute2 ca-certificates curl

TRIPLE_amd64 := x86_64-linux-gnu
TRIPLE_arm64 := aarch64-linux-gnu
TRIPLE       := $(TRIPLE_$(ARCH))
CROSS_PACKAGES = gcc-$(subst _,-,$(TRIPLE)) libc6-dev-$(ARCH)-cross libseccomp-dev:$(ARCH)

.PHONY: help conformance deps deps-cross build cross run test test-quick test-unit test-integration test-kubelet vm-test vm-smoke vm-shell vm-exec vm-shutdown vm-powercut deps-vm bench bench-pull lint install uninstall clean FORCE

help: ## list the targets
	@echo "Evenkeel $(VERSION) for linux/$(ARCH). Targets:"
	grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/' | column -t -s '|'
	echo "Variables: ARCH=amd64|arm64  VERSION  PREFIX=$(PREFIX)  DESTDIR  CNI_DIR=$(CNI_DIR)"

deps: ## install the packages that building and testing need (apt; quick when they are there)
	@build/packages $(PACKAGES)

deps-cross: deps ## install what `make cross` needs besides
	@build/packages --arch $(ARCH) $(CROSS_PACKAGES)

build: $(OURS) $(BIN)/runc $(PLUGINS:%=$(BIN)/%) ## build evenkeel, its shim, runc and the CNI plugins into bin/linux-ARCH

cross: ## the same for another architecture: make cross ARCH=arm64
	@$(MAKE) deps-cross build ARCH=$(ARCH)

run: deps build ## build, start a private engine, run the example pod, take all down and look for leftovers
	@examples/demo.sh

test: deps build ## unit, golden and integration tests on the real parts (root; under 10 minutes)
	@$(MAKE) test-unit test-integration

test-quick: deps build ## the same without the long suites (under 5 minutes)
	@$(MAKE) test-unit test-integration SHORT=-short

# Unit tests come first and alone: the integration tests look at the whole machine for leftovers.
test-unit: ## unit and golden tests of every room
	@build/need-root test
	export PATH="$(BIN):$$PATH"
	$(GO) run ./integration/conformance $(SHORT) record bin/unit $(SHORT) -timeout 15m $$($(GO) list ./... | grep -v /integration)

# Four at once of those tests that wait for most of their time (waits in integration/), however few processors there are.
test-integration: ## integration tests with the binaries of bin/linux-ARCH
	@build/need-root test
	export EVENKEEL_TEST_REPORT=$(CURDIR)/bin/report.txt
	rm -f $$EVENKEEL_TEST_REPORT
	$(GO) run ./integration/conformance $(SHORT) record bin/host $(SHORT) -count=1 -timeout 20m -parallel 4 ./integration/...
	echo "measured:" && sed 's/^/  /' $$EVENKEEL_TEST_REPORT

test-kubelet: deps build $(BIN)/kubelet ## let the real kubelet run pods on the engine (building it takes some minutes)
	@build/need-root test-kubelet
	EVENKEEL_TEST_KUBELET=$(BIN)/kubelet $(GO) test ./integration -run '^TestKubelet$$' -count=1 -v -timeout 15m

# The machines are emulated: no KVM, and no root but for installing qemu. See docs/VM.md.
INIT   ?= bare
SUITE  ?=
QEMU_amd64 := qemu-system-x86
QEMU_arm64 := qemu-system-arm
VM = $(GO) run ./integration/vm -arch $(ARCH) -init $(INIT) $(if $(SUITE),-suite '$(SUITE)') $(if $(SHORT),-short) $(VMFLAGS)

deps-vm: $(if $(filter $(HOST_ARCH),$(ARCH)),deps,deps-cross)
	@build/packages $(QEMU_$(ARCH)) e2fsprogs xz-utils $(if $(findstring -selinux,$(VMFLAGS)),secilc)

vm-test: deps-vm build ## integration tests in a virtual machine with cgroup v2: make vm-test ARCH=arm64 [INIT=bare|systemd] [SUITE=regexp]
	@$(VM) test

MACHINES := amd64-bare arm64-bare amd64-systemd arm64-systemd

conformance: ## docs/CONFORMANCE.md from the last results of test-integration and vm-test
	@$(GO) run ./integration/conformance table bin/host $(addprefix bin/vm/,$(MACHINES)) > bin/conformance.md
	mv bin/conformance.md docs/CONFORMANCE.md

# What one look at a machine needs: pods on both networks, execs, logs, ends and OOM, limits, images, recovery, user namespaces,
# and what a host without cgroup v2, AppArmor and systemd skips.
SMOKE := VersionAndStatus LifeOfAPod ExecSync Exits LogRecords OOMIsToldExactly UpdateResources LifeOfAnImage \
	OneTagForEveryMachine ImageOfAnotherPlatform HostPort KilledShimIsNotSuccess UnreadableRecordIsSetAside UserNamespace \
	AppArmor LimitsOnV2 OOMGroup ImageUnderQemu SystemdRestarts ScopesAreHealed StrayUnits
empty :=

vm-smoke: ## a selection of vm-test that takes some minutes: make vm-smoke ARCH=arm64 [INIT=bare|systemd]
	@$(MAKE) vm-test SHORT=-short SUITE='^Test($(subst $(empty) $(empty),|,$(strip $(SMOKE))))$$$$' VMFLAGS='-limit 30m $(VMFLAGS)'

vm-shell: deps-vm build ## a shell in the same machine
	@$(VM) shell

vm-exec: deps-vm build ## a command in the same machine: make vm-exec VMFLAGS='-add DIR' CMD='DIR/program argument'
	@$(VM) exec $(CMD)

vm-shutdown: deps-vm build ## turn a machine under systemd off while pods run
	@$(VM) -init systemd shutdown

vm-powercut: deps-vm build ## cut a machine's power while it pulls images, and check what is left (ROUNDS=n MODE=images|pods)
	@$(VM) $(if $(MODE),-mode $(MODE)) $(if $(ROUNDS),-rounds $(ROUNDS)) powercut

bench: deps build ## measure Evenkeel, and containerd beside it where installed (ROUNDS=n, CONTAINERD=its path)
	@build/need-root bench
	build/packages strace
	$(GO) run ./integration/bench -bin $(BIN) $(if $(ROUNDS),-rounds $(ROUNDS)) $(BENCHFLAGS)

bench-pull: deps build ## pull three large images with Evenkeel, and with CONTAINERD=/path/to/containerd in turn (ROUNDS=n)
	@build/need-root bench-pull
	$(GO) run ./integration/benchpull -bin $(BIN) $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(CONTAINERD),-containerd $(CONTAINERD)) $(BENCHFLAGS)

lint: ## gofmt, go vet, staticcheck, import rules and banned calls
	@build/lint/run

# install keeps runc and the shim beside the daemon, in a directory of their own: a runc that the machine has already
# is neither replaced nor used by surprise. CNI plugins that are there are kept.
install: ## install into DESTDIR/PREFIX, CNI plugins into CNI_DIR, and the systemd unit
	@for f in evenkeel evenkeel-shim runc; do
		test -x $(BIN)/$$f || { echo "$(BIN)/$$f is missing: run make build first" >&2; exit 1; }
		install -D -m 0755 $(BIN)/$$f $(DESTDIR)$(PREFIX)/libexec/evenkeel/$$f
	done
	install -d $(DESTDIR)$(PREFIX)/bin
	ln -sf ../libexec/evenkeel/evenkeel $(DESTDIR)$(PREFIX)/bin/evenkeel
	for p in $(PLUGINS); do
		if test -e $(DESTDIR)$(CNI_DIR)/$$p; then echo "kept $(DESTDIR)$(CNI_DIR)/$$p"
		else install -D -m 0755 $(BIN)/$$p $(DESTDIR)$(CNI_DIR)/$$p; fi
	done
	install -d $(DESTDIR)$(UNITS)
	sed 's|@PREFIX@|$(PREFIX)|g' dist/evenkeel.service > $(DESTDIR)$(UNITS)/evenkeel.service
	install -m 0644 dist/evenkeel.socket $(DESTDIR)$(UNITS)/evenkeel.socket
	echo "installed evenkeel $(VERSION). Next: systemctl enable --now evenkeel, and see README.md for kubelet and crictl"

uninstall: ## remove what install put there, except CNI plugins and data
	@rm -rf $(DESTDIR)$(PREFIX)/libexec/evenkeel $(DESTDIR)$(PREFIX)/bin/evenkeel $(DESTDIR)$(UNITS)/evenkeel.service $(DESTDIR)$(UNITS)/evenkeel.socket

clean: ## remove bin/
	@rm -rf bin

# --- how each binary is made ---------------------------------------------------------------------------------------

# Go knows itself whether something changed, so ours are always asked for. nri_no_wasm leaves out a WebAssembly engine
# of 2.5 MB that would run NRI plugins inside the daemon; grpcnotrace a page of gRPC's requests that nobody serves, whose
# templates would have the linker keep every method of every type.
TAGS := nri_no_wasm,grpcnotrace
$(OURS): FORCE
	@CGO_ENABLED=0 GOARCH=$(ARCH) $(GO) build -trimpath -tags $(TAGS) -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/$(@F)

# As runc's own release is built (static-pie, seccomp), without libpathrs, which is a Rust library that Debian 12 lacks.
$(BIN)/runc: build/runc/go.mod build/runc/go.sum
	@echo "building runc ($(ARCH))"
	cd build/runc
	export CGO_ENABLED=1 GOARCH=$(ARCH)
	if [ $(ARCH) != $(HOST_ARCH) ]; then
		export CC=$(TRIPLE)-gcc PKG_CONFIG_LIBDIR=/usr/lib/$(TRIPLE)/pkgconfig
	fi
	$(GO) build -trimpath -buildmode=pie -tags 'seccomp urfave_cli_no_docs netgo osusergo' \
		-ldflags '-s -w -linkmode external -extldflags -static-pie' -o $@ github.com/opencontainers/runc
	touch $@

$(BIN)/kubelet: build/kubelet/go.mod build/kubelet/go.sum
	@echo "building the kubelet ($(ARCH))"
	cd build/kubelet
	version=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)
	CGO_ENABLED=0 GOARCH=$(ARCH) $(GO) build -trimpath \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$version" -o $@ k8s.io/kubernetes/cmd/kubelet
	touch $@

CNI_SOURCE  := github.com/containernetworking/plugins
CNI_VERSION  = $$($(GO) list -m -f '{{.Version}}' $(CNI_SOURCE))

$(PLUGINS:%=$(BIN)/%) &: build/cni/go.mod build/cni/go.sum
	@echo "building CNI plugins ($(ARCH))"
	cd build/cni
	CGO_ENABLED=0 GOARCH=$(ARCH) $(GO) build -trimpath \
		-ldflags "-s -w -X $(CNI_SOURCE)/pkg/utils/buildversion.BuildVersion=$(CNI_VERSION)" -o $(BIN)/ tool
	touch $(PLUGINS:%=$(BIN)/%)
