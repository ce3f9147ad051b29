# Everything a developer or a new user types. Each target prepares what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin

# Half of the tests wait for peers, so two of them at a time suit two cores.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

##   make run       set up, then the rehearsal: primary, backup, outage, recovery
run: set-up-run
	@$(BIN)/posthouse demo

##   make test      set up with the real peers from Debian, then every test
test: set-up-test peers
	@$(PYTEST)

##   make check     lint + type + imports + docs
check: lint type imports docs

##   make lint      ruff: rules and format
lint: set-up-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

##   make fmt       ruff: mend what can be mended, format
fmt: set-up-test
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format .

##   make type      mypy, strict
type: set-up-test
	@$(BIN)/mypy

##   make imports   import contracts: who may import whom
imports: set-up-test
	@$(BIN)/lint-imports

##   make docs      links within the documents lead somewhere
docs: set-up-test
	@$(BIN)/python scripts/check_links.py

##   make docs-replies   print docs/replies.md from its table
docs-replies: set-up-test
	@$(BIN)/python -m posthouse.domain.replies_text > docs/replies.md

##   make bench     side by side with Postfix, as ratios (takes long; see docs/benchmarks.md)
bench: set-up-test peers
	@$(BIN)/python -m bench

##   make fuzz      the property tests with many more examples
fuzz: set-up-test
	@$(PYTEST) tests/fuzz --hypothesis-profile=long --timeout=1800

##   make lock      compile requirements/*.in again, to newer versions
lock: set-up-test
	@scripts/lock

##   make clean     remove what the targets above made
clean:
	@rm -rf .venv .bench .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

help:
	@echo "Posthouse, a backup MX. What to type:"
	@sed -n 's/^##//p' $(firstword $(MAKEFILE_LIST))

set-up-run:
	@scripts/setup run

set-up-test:
	@scripts/setup test

peers:
	@scripts/setup peers

.PHONY: run test check lint fmt type imports docs docs-replies bench fuzz lock clean help set-up-run set-up-test peers
