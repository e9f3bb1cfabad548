# Everything a person or CI runs. `make` alone lists the targets.
#
# Lab and tests use network namespaces and BPF: run them as root. Where root, BPF or etcd is missing, the
# tests that need it say `skipped: why`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/sbin:/sbin:$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
LAB := $(TARGET_DIR)/release/warren-lab
SCENARIOS ?= $(basename $(notdir $(wildcard chaos/scenarios/*.toml)))
CARGO_DENY_VERSION := 0.20

.PHONY: help setup build lab lab-down test chaos fuzz test-scale bench bench-services fmt fmt-check clippy check-tests test-etcd test-kernels test-upgrade docs deny

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

setup: ## install what is missing (deploy/setup.sh)
	@deploy/setup.sh

build: setup ## release build of the agent, the command line and the lab
	cargo build --locked --release

lab: build ## 3 nodes and 3 etcd members on this machine, shown at work and left standing
	$(LAB) demo

lab-down: ## take the lab away
	@if [[ -x $(LAB) ]]; then $(LAB) down; else echo "no lab was built here"; fi

test: setup fmt-check clippy check-tests ## formatting, lints and all tests; what CI runs

fmt: ## format the code
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

clippy: ## all lints, warnings denied
	cargo clippy --locked --workspace --all-targets -- -D warnings

check-tests:
	@deploy/run-tests.sh

# By name, so that neither is skipped when it is missing; one by one, as .config/nextest.toml says why.
test-etcd: setup ## the etcd tests, on the system's etcd and on 3.5 (deploy/etcd-3.5.sh fetches it)
	@newer=$$(deploy/etcd-3.5.sh); \
	status=0; \
	for etcd in "$$(command -v etcd)" "$$newer"; do \
	    WARREN_ETCD=$$etcd cargo test --locked -p kvstore-etcd --tests --no-fail-fast -- --test-threads=1 || status=1; \
	done; \
	exit $$status

test-kernels: setup ## packet tests and a lab under Debian's 6.1 and 6.12, in emulation (fetches them)
	@deploy/kernels/run.sh

# By hand: make fuzz TARGET=handle SECONDS=600
fuzz: setup ## coverage-guided fuzzing of all targets, or TARGET=name, SECONDS=60 each (chaos/fuzz/fuzz.sh)
	@SECONDS_EACH=$(or $(SECONDS),60) chaos/fuzz/fuzz.sh $(TARGET)

chaos: build ## run every scenario of chaos/scenarios, one after the other (SCENARIOS='a b', SEED=n)
	@failed=; \
	for name in $(SCENARIOS); do \
	    $(LAB) --name chaos run $$name $(if $(SEED),--seed $(SEED)) || failed+=" $$name"; \
	done; \
	if [[ -n $$failed ]]; then echo "scenarios that failed:$$failed"; exit 1; fi; \
	echo "all scenarios passed"

test-upgrade: setup ## agents killed, stopped, upgraded and downgraded under traffic, 20 times each
	cargo build --locked --workspace --bins
	cargo build --locked -p node-agent --bin warrend-next --features next-layout
	UPGRADE_ROUNDS=20 cargo test --locked -p chaos-lab --test system upgrade -- --nocapture --test-threads=1

# Release programs, on a quiet machine: some ten minutes. Prints figures; fails on leaks.
test-scale: build ## 10,000 endpoints come and go; 100,000 are known; 10,000 services; backends die under 1,000 connections/s
	WARREN_SCALE_ENDPOINTS=10000 WARREN_SCALE_KNOWN=100000 WARREN_SCALE_SERVICES=10000 WARREN_SCALE_RATE=1000 \
	    WARREN_SCALE_PROGRAMS=$(abspath $(TARGET_DIR))/release \
	    cargo test --locked -p chaos-lab --test system -- --test-threads=1 --nocapture \
	    endpoint_churn covers_a_large_fleet services_are_applied_in_bulk nodeport_and_external http_load health::

bench: setup ## what programs and decisions cost
	cargo bench --locked -p datapath-linux -p node-core

# By hand: make bench-services COUNT=1000 ROUNDS=9
bench-services: build ## a service alone and beside 10,000 others (COUNT=n, ROUNDS=n), and the same by iptables
	@trap '$(LAB) --name bench down' EXIT; \
	$(LAB) --name bench up --nodes 1 --etcd 1; \
	$(LAB) --name bench services $(if $(COUNT),--count $(COUNT)) $(if $(ROUNDS),--rounds $(ROUNDS))

docs: ## the crates' documentation, broken links denied
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

deny: ## licences, advisories and sources of all dependencies (installs cargo-deny when absent)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny --version ~$(CARGO_DENY_VERSION)
	cargo deny --locked check
