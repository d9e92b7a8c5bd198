# Needs Python 3.11 or later, git and make; everything else goes into .venv/.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install run test test-thorough test-all check docs repro wheel demo-ocr demo-pitch ui serve clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(STAMP) ## make the environment in .venv/

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: install ## compress the model that params.yaml names, from the data to the report
	$(BIN)/python -m flows.compress

test: install ## run the quick tests, two at a time
	$(BIN)/python -m pytest -m "not thorough and not slow" -n 2 --dist loadfile

test-thorough: install ## run whole runs, kills, hostile files and more random networks, seconds each
	$(BIN)/python -m pytest -m "thorough and not slow" -n 2 --dist loadfile

test-all: install ## run every test, those of minutes and of real servers too
	$(BIN)/python -m pytest

check: install ## ruff, mypy --strict, import-linter, pins with known vulnerabilities, links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/advisories.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs: install ## build the documentation into build/site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

repro: install ## run what has changed, through DVC
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

wheel: install ## build the package that pip installs into dist/
	$(BIN)/python -m pip wheel --no-deps --quiet --wheel-dir dist .

define DEMO
mkdir -p build/$@
cp examples/$(@:demo-%=%)/*.py examples/$(@:demo-%=%)/params.yaml build/$@/
cd build/$@ && $(CURDIR)/$(BIN)/python fetch.py
cd build/$@ && $(CURDIR)/$(BIN)/secateur run --no-commit
cd build/$@ && $(CURDIR)/$(BIN)/python score.py
endef

demo-ocr: install ## halve a published reader of words, in build/demo-ocr/; fetches 92 MB once
	$(DEMO)

demo-pitch: install ## make a published hearer of pitch small, in build/demo-pitch/; fetches 72 MB once
	$(DEMO)

ui: install ## show Prefect's and MLflow's pages until Ctrl-C
	$(BIN)/python -m flows.servers

serve: install ## run by the schedule of prefect.yaml, with servers and a worker, until Ctrl-C
	$(BIN)/python -m flows.serve

clean: ## remove the environment and all caches; artifacts, data and records stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
