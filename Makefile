# `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
# rustup puts cargo there; a shell that was open before may not know yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

# Every target builds in release: one build of llama.cpp serves them all.

.PHONY: help demo test check setup clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

ARGS ?= --tokens 1048448
demo: setup ## ask the bundled model about a million tokens; ARGS="--tokens 65536" for fewer
	@cargo run --release --locked -- demo $(ARGS)

# What is tested is compiled as it is released, but not the programs that test it (those of the
# folder tests; the package has nothing else but names for others' code): a third of the time.
TESTS := --release --locked --workspace --config profile.release.package.kiv.opt-level=0

test: setup ## run every test, documentation's included
	cargo test $(TESTS)
	cargo test $(TESTS) --features kiv-runtime/cuda-swap --test driver --test gpu
	scripts/patches check

check: setup ## format, lints, patches, documentation
	cargo fmt --all --check
	scripts/patches check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo clippy --release --locked -p kiv-cuda -p kiv-runtime --features kiv-runtime/cuda-swap \
		--all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked -p kiv-cuda -p kiv-runtime \
		--features kiv-runtime/cuda-swap --no-deps

setup: ## check for cmake, a C++ compiler, libclang and Rust; install them on Debian and Ubuntu
	@scripts/setup

clean: ## remove what was built
	cargo clean

# The server under other people's clients; their packages, in environments of their own.
.PHONY: test-clients soak

test-clients: tests/clients/venv/bin/python ## the server under the clients of openai, ollama and LangChain; needs Python and Node.js 20
	cargo build --release --locked
	npm --prefix tests/clients install --silent --no-package-lock
	tests/clients/venv/bin/python tests/clients/check.py

MINUTES ?= 10
soak: setup ## the server under 32 clients at once for 10 minutes; MINUTES=1 for fewer; Linux and Python
	cargo build --release --locked
	python3 tests/clients/soak.py --minutes $(MINUTES)

tests/clients/venv/bin/python: tests/clients/requirements.txt
	python3 -m venv tests/clients/venv
	$@ -m pip install --quiet -r tests/clients/requirements.txt
	touch $@

# The server's page in headless Chromium (CHROMIUM names it if it is not /usr/bin/chromium).
.PHONY: test-web

test-web: ## the server's page in a browser; needs Node.js 20 and Chromium
	cargo build --release --locked
	npm --prefix tests/web install --silent --no-package-lock
	node tests/web/check.mjs

# Training of the reference models (training/README.md), apart from all else: Python,
# in an environment of its own. TRAIN_PYTHON may name one that has the packages.
TRAIN_PYTHON ?= $(CURDIR)/training/venv/bin/python
SMOKE := $(CURDIR)/training/runs/smoke

.PHONY: train-smoke

train-smoke: $(TRAIN_PYTHON) ## train a reduced model for some minutes and check its file; needs Python 3.11
	rm -rf $(SMOKE)
	cd training && $(TRAIN_PYTHON) -m unittest --quiet
	cd training && $(TRAIN_PYTHON) -m kivtrain train --config smoke --eval-every 0 --out $(SMOKE)
	cd training && $(TRAIN_PYTHON) -m kivtrain check --out $(SMOKE) --kiv $(CURDIR)/target/release/kiv

$(CURDIR)/training/venv/bin/python: training/requirements.txt
	python3 -m venv training/venv
	$@ -m pip install --quiet -r training/requirements.txt
	touch $@
