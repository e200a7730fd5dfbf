# What people type is what CI runs. Each command makes what it needs; a second call is fast.
#
#   make PYTHON=python3.12 test      another interpreter (3.11 or later), for a new .venv
#   make test ARGS="-k headers -x"   arguments for pytest
#   make test JOBS=0                 all tests in one process
#   make bench ARGS=--quick          arguments for the benchmarks
#   make soak MINUTES=20             how long it goes on
#   make pictures ARGS="chat board"  only these
#   make release-check ARGS=--final  as for the commit that is to be tagged
#   BIND=127.0.0.1:9000 make demo    another address

PYTHON ?= python3
BIND ?= 127.0.0.1:8000
ARGS ?=
JOBS ?= 2
MINUTES ?= 5

VENV := .venv
BIN := $(VENV)/bin
# An editable install holds the dependencies and the metadata; the code is read from here.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input -qq -e
PACKAGING := setup.cfg pyproject.toml
# The browser client: sources, and the file that is built from them and served.
CLIENT := clients/js
SERVED := sseflask/static/client.js
# pyright's wrapper would ask for its newest release and keep files in the home directory.
PYRIGHT := PYRIGHT_PYTHON_IGNORE_WARNINGS=1 PYRIGHT_PYTHON_CACHE_DIR=$(abspath $(VENV))/cache $(BIN)/pyright

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint lint-rules lint-format lint-mypy lint-pyright format client docs pictures bench soak release-check clean

help:
	@echo "make demo    serve the examples at http://$(BIND)"
	@echo "make test    run the whole test suite (ARGS=... for pytest)"
	@echo "make lint    ruff, mypy and pyright"
	@echo "make format  let ruff format the code and fix what it can"
	@echo "make client  build the browser client from $(CLIENT) into $(SERVED)"
	@echo "make docs    build the documentation into docs/_build, warnings being errors"
	@echo "make pictures  take the documentation's pictures anew from the running examples (ARGS=...)"
	@echo "make bench   measure beside the others, and write docs/compare/benchmarks.md (ARGS=...)"
	@echo "make soak    load and faults for MINUTES=5, and a report (ARGS=...)"
	@echo "make release-check  build the archives, look into them, and test the installed wheel (ARGS=...)"
	@echo "make clean   remove what these commands made"

demo: $(VENV)/.demo
	@echo "The examples: http://$(BIND) (Ctrl+C ends)"
	@BIND=$(BIND) exec $(BIN)/gunicorn -c gunicorn.conf.py 'examples:create_app()'

test: $(VENV)/.test
	@sh tests/system.sh browser
	@sh tests/system.sh redis
	@sh tests/system.sh proxies
	@sh tests/system.sh node
	@sh tests/system.sh network
	@! command -v npm >/dev/null || $(MAKE) --no-print-directory $(CLIENT)/node_modules/.package-lock.json || true
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# All four say what they have to say, even when the first fails.
lint: $(VENV)/.lint
	@$(MAKE) --no-print-directory --keep-going lint-rules lint-format lint-mypy lint-pyright

lint-rules:
	@$(BIN)/ruff check .

lint-format:
	@$(BIN)/ruff format --check .

lint-mypy:
	@$(BIN)/mypy --strict

lint-pyright:
	@$(PYRIGHT)

format: $(VENV)/.lint
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

client: $(CLIENT)/node_modules/.package-lock.json
	@cd $(CLIENT) && npm run --silent build && npm run --silent check
	@mkdir -p $(dir $(SERVED)) && cp $(CLIENT)/dist/client.js $(CLIENT)/dist/client.LICENSE.txt $(dir $(SERVED))

docs: $(VENV)/.docs
	@sh tests/system.sh docs
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build
	@echo "The documentation: docs/_build/index.html"

pictures: $(VENV)/.test
	@sh tests/system.sh browser
	@sh tests/system.sh redis
	@$(BIN)/python -m tests.browser.pictures $(ARGS)

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks all --save $(ARGS)

soak: $(VENV)/.test
	@sh tests/system.sh redis
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

release-check: $(VENV)/.release
	@sh tests/system.sh redis
	@$(BIN)/python -m tests.release $(ARGS)

clean:
	@rm -rf $(VENV) $(CLIENT)/node_modules $(CLIENT)/dist docs/_build benchmarks/.env tests/interop/node/node_modules build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@echo "Making the virtual environment $(VENV)"
	@sh tests/system.sh python $(PYTHON)
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python $(PACKAGING)
	@echo "Installing the package and what its examples need"
	@$(INSTALL) '.[examples]'
	@touch $@

$(VENV)/.test: $(VENV)/.python $(PACKAGING)
	@echo "Installing the package and what its tests need"
	@$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.demo

# What npm leaves when it is done; none of the packages has a script that must run.
$(CLIENT)/node_modules/.package-lock.json: $(CLIENT)/package.json $(CLIENT)/package-lock.json
	@sh tests/system.sh node
	@echo "Installing what builds the browser client"
	@cd $(CLIENT) && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error
	@touch $@

$(VENV)/.lint: $(VENV)/.python $(PACKAGING)
	@echo "Installing the package and what checks it"
	@$(INSTALL) '.[lint]'
	@touch $@

$(VENV)/.docs: $(VENV)/.python $(PACKAGING)
	@echo "Installing the package and what builds its documentation"
	@$(INSTALL) '.[docs]'
	@touch $@

$(VENV)/.bench: $(VENV)/.python $(PACKAGING)
	@echo "Installing the package and what the benchmarks' plots need"
	@$(INSTALL) '.[bench]'
	@touch $@

$(VENV)/.release: $(VENV)/.python $(PACKAGING)
	@echo "Installing the package and what builds and checks its archives"
	@$(INSTALL) '.[release]'
	@touch $@
