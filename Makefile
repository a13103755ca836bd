# Everything one needs: `make up` to run it, `make test` to check it. STATE, HOST, PORT, ISOLATION and DOMAIN are passed on.
export STATE HOST PORT ISOLATION DOMAIN
STATE ?= /var/lib/cloche
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help up down setup test lint type unit contract architecture integration compat official security bench sync-sdk

help:           ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
up: setup       ## Set up, start the server, run the quick start
	@tools/up
down:           ## End the server and its sandboxes
	@if [ -x $(BIN)/cloche ]; then $(BIN)/cloche down --state "$(STATE)"; else echo "nothing was set up here yet"; fi
setup:          ## Install packages, make the environment, build the default template
	@tools/setup
test:           ## Set up, then run all tests but the nightly ones
	@tools/test
lint:           ## Ruff
	@$(BIN)/ruff check .
type:           ## Pyright, strict
	@$(BIN)/pyright
unit:           ## Tests that need neither root nor network
	@$(PYTEST) tests/unit
contract:       ## Codecs and answers against the specifications
	@$(PYTEST) tests/contract
architecture:   ## Imports, sizes, pages
	@$(PYTEST) tests/architecture
integration:    ## Real namespaces, control groups and rules; as root
	@$(PYTEST) tests/integration
compat:         ## The official clients against a live server; as root
	@$(PYTEST) tests/compat
official:       ## The official clients' own suites; SUITES=<folder with the public test trees>; as root
	@tools/official-suites "$(SUITES)" $(if $(ISOLATION),--isolation $(ISOLATION))
security:       ## One file per boundary; as root
	@$(PYTEST) tests/security
bench:          ## Measure the running server against its promises
	@tools/official-clients python
	@tools/bench-kernel
	@$(BIN)/cloche bench --state "$(STATE)"
sync-sdk:       ## Write the synchronous SDK from the asynchronous one
	@$(BIN)/python tools/unasync.py
