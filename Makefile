# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3.11
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
PINS := constraints.txt

.PHONY: demo test lint format clean

demo: $(VENV)/.demo
	$(VENV)/bin/masksparse deploy samples/digits/deploy.yaml

# One process for each core, and one thread in each.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# torch comes first and by exact version: a range may bring another build with gigabytes of CUDA libraries.
$(VENV)/.base: pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c $(PINS) 'torch==$(shell sed -n 's/^torch==//p' $(PINS))'
	$(PIP) install -q -c $(PINS) -e '.[learn,report]'
	touch $@

$(VENV)/.demo: $(VENV)/.base samples/digits/requirements.txt
	$(PIP) install -q -c $(PINS) -r samples/digits/requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install -q -c $(PINS) -e '.[learn,report,dev]'
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
