# What people type. `make` alone lists it. Nothing here is needed to build: `cargo build --release` does that.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Options for `phalanx serve`, as in: make serve ARGS="--listen 0.0.0.0:8080 --workers 2"
ARGS ?=
# Options for the engine's benchmark, as in: make bench BENCH_ARGS="--model demo"
BENCH_ARGS ?=
# Options for the comparison with other routers, as in: make bench-rivals RIVALS_ARGS="--only overhead --seconds 2"
RIVALS_ARGS ?=

.PHONY: help serve test test-tools verify fix bench bench-rivals compose-image compose-up compose-test

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

serve: ## Build if needed, and serve the demo model on http://127.0.0.1:8080
	cargo build --release --locked --bin phalanx
	exec target/release/phalanx serve $(ARGS)

test: test-tools ## Install what the tests need, then run every test (what CI runs)
	cargo build --locked --workspace --bin phalanx --tests # in one go: the tests' features are the binary's
	if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --locked --workspace; \
	else \
		cargo test --locked --workspace -- --test-threads=2; \
	fi

test-tools: # A C compiler, Python's venv and network tools (Debian packages, if missing), and the official client
	cluster-tests/python/install

verify: ## Check format, lints, documentation and dependencies; writes nothing
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed: skipped"; fi

fix: ## Format, and apply the lints' own fixes
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench: ## Run the benchmarks: tables on the terminal, JSON in bench/results
	cargo bench --locked --package phalanx-kernels --bench linear
	cargo bench --locked --package phalanx-worker --bench engine -- \
		--out $(CURDIR)/bench/results/engine.json $(BENCH_ARGS)
	cargo bench --locked --package phalanx-control --bench recovery -- \
		--out $(CURDIR)/bench/results/control-recovery.json
	cargo build --release --locked --bin phalanx
	cargo bench --locked --package phalanx-cluster-tests --bench router -- \
		--out $(CURDIR)/bench/results/router.json
	cargo bench --locked --package phalanx-cluster-tests --bench control -- \
		--out $(CURDIR)/bench/results/control.json
	cargo bench --locked --package phalanx-cluster-tests --bench migration -- \
		--out $(CURDIR)/bench/results/migration.json
	$(MAKE) bench-rivals

bench-rivals: ## Measure the router beside nginx, haproxy, sglang-router and vllm-router (part of bench)
	bench/rivals/install
	cargo build --release --locked --bin phalanx
	cargo bench --locked --package phalanx-cluster-tests --bench rivals -- \
		--out $(CURDIR)/bench/results $(RIVALS_ARGS)

compose-image: # The binary and what it links to, in an image of its own
	cargo build --release --locked --bin phalanx
	compose/build-image

compose-up: compose-image ## Start a local cluster in containers, its router on http://127.0.0.1:8080
	compose/compose up --detach

compose-test: compose-image ## Start such a cluster, try it, and take it down
	compose/test
