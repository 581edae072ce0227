# Everything a newcomer types. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Idle OpenMP threads that spin starve a second torch process on the same cores.
export OMP_WAIT_POLICY := PASSIVE
# onnxruntime reports to its makers unless told not to.
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

.PHONY: install
install: $(STAMP) ## Make the environment in .venv

.PHONY: demo
demo: $(STAMP) ## Train a small network, compress it over HTTP, print before and after
	$(BIN)/python examples/demo.py

.PHONY: serve
serve: $(STAMP) ## Run the service here until Ctrl-C, with the curl lines for your own files
	@cat docs/curl.txt
	$(BIN)/featherweight serve

.PHONY: test
test: $(STAMP) ## Check style, types and imports, and run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 tests/worker/compressor
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/worker/compressor

.PHONY: faults
faults: $(STAMP) ## Kill every process of the service ten times each in mid job
	$(BIN)/python -m pytest tests/faults --times 10

.PHONY: catalog
catalog: $(STAMP) ## Write app/spec/catalog.json again from the registries
	$(BIN)/python -m worker.compressor.catalog

.PHONY: format
format: $(STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
