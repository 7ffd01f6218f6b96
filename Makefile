# Each target installs what it is missing first (scripts/setup), and says so. PYTHON= chooses the interpreter.

PYTHON := $(shell scripts/python "$(PYTHON)")
export PYTHON
export PYO3_PYTHON := $(PYTHON)

CARGO ?= cargo

.DEFAULT_GOAL := build
.PHONY: build run test test-reference hammer hammer-reference sanitize fuzz check bench audit clean help

build: ## the command, both modules and the workers' extension, in target/release
	@scripts/setup build
	$(CARGO) build --release --workspace --locked
	$(CARGO) rustc -p highball --lib --release --locked --no-default-features --features extension --crate-type cdylib --target-dir target/extension
	@install -m 0755 target/extension/release/libhighball.so target/release/libhighball_worker.so
	@ls -l target/release/highball target/release/libngx_http_highball_module.so target/release/libmod_highball.so target/release/libhighball_worker.so

run: build ## a Django project in nginx on http://127.0.0.1:8000/, until Ctrl-C
	@scripts/setup run
	@exec scripts/demo

test: build ## unit tests, then real applications in real nginx and Apache
	@scripts/setup test
	@scripts/test

test-reference: build ## the same tests against the newest mod_wsgi: what it lacks goes to docs/conformance.md
	@scripts/setup test
	@scripts/test-reference

hammer: build ## process groups under load while everything is replaced or killed, a minute for each part
	@scripts/setup test
	@scripts/venv target/venv tests/requirements.txt
	@HAMMER_SECONDS=$${HAMMER_SECONDS:-60} target/venv/bin/python -m pytest tests/test_hammer.py tests/test_idle.py -s

hammer-reference: build ## the same load on Highball, mod_wsgi and nginx with gunicorn, some 12 minutes
	@scripts/setup bench
	@scripts/hammer-reference

sanitize: build ## the same tests under AddressSanitizer and valgrind, in some fifteen minutes
	@scripts/setup sanitize
	@scripts/sanitize

fuzz: ## looks for input that breaks a parser, for FUZZ_SECONDS=600
	@scripts/setup fuzz
	@scripts/fuzz

check: ## formatting, lints, licences, and the rules of this tree
	@scripts/setup check
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p highball --lib --no-default-features --features extension --locked -- -D warnings
	$(CARGO) fetch --locked
	$(CARGO) deny --offline check licenses bans sources
	@scripts/source-rules

bench: build ## CPU per request and memory, beside seven other set-ups, in 15 minutes; ONLY=hello,django PEERS=uwsgi,mod_wsgi
	@scripts/setup bench
	@scripts/bench

audit: ## known vulnerabilities of what is linked in; needs their database from the network
	@scripts/setup check
	$(CARGO) deny check advisories

clean: ## everything built, the demo and the environments of tests
	rm -rf target
	rm -rf "/var/tmp/highball-demo-$$(id -u)"

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
