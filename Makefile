# make demo   set up and train a gate on MNIST digits;  make test   run the tests;  make help   all targets
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs format clean same-python

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1 \t/' | expand -t 16
	@echo "  PYTHON=$(PYTHON) makes the environment (3.10 or newer); it lives in VENV=$(VENV) and keeps its Python."

demo: $(VENV)/.installed ## Set up, then train a network on MNIST digits, and a gate for it
	$(BIN)/python -m dfs_rl.train_agent --dataset mnist5k --supernet-epochs 10 --hidden 8 --budget 0.4 \
		--timesteps 100000

test: $(VENV)/.installed-dev ## Set up, then run the tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev ## Check style, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target build/lint .
	cd build/lint && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml
	cd build/lint && $(abspath $(BIN))/lint-imports --config ../../pyproject.toml

docs: $(VENV)/.installed-dev ## Build the documentation into build/docs; any warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/.installed-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove caches and build products; runs and the environment stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

# The target is bin/pip: without ensurepip, venv creates bin/python but no pip.
$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || \
		{ echo "$(PYTHON) is not installed; give another one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); DFS-RL needs Python 3.10 or newer: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# An environment keeps the Python that made it, so another one that is asked for is refused.
same-python: | $(BIN)/pip
ifneq ($(origin PYTHON),file)
	@about='import sys; print(sys.base_prefix, sys.version)'; \
		[ "$$($(PYTHON) -c "$$about")" = "$$($(BIN)/python -c "$$about")" ] || { echo \
		"PYTHON is $(PYTHON) ($$($(PYTHON) -V 2>&1)), but $(VENV) was made with another one ($$($(BIN)/python -V 2>&1)): remove $(VENV), or give another place: VENV=DIR" >&2; \
		exit 1; }
endif

# A stamp is newer than the files it was installed from, so a second make installs nothing.
$(VENV)/.installed: $(SOURCES) | same-python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(SOURCES) | same-python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed
