# Every target sets up what it needs in .venv; all that must be there is make and Python 3.10 or later.

VENV ?= .venv
PY := $(VENV)/bin/python
CONSTRAINTS := constraints/make.txt
# Extra flags for creating the environment; `--system-site-packages` takes over a torch that is installed already.
VENV_FLAGS ?=
# What `make gpu` runs on: the Python of the machine, with the packages that it has.
PYTHON ?= python3
PYTEST_ARGS ?=

# A name on PATH may be a shim that runs nothing, so each candidate is asked.
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))
find_python = for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c '$(USABLE)' >/dev/null 2>&1 && { echo $$p; break; }; done

export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.NOTPARALLEL:
.PHONY: help demo test lint lint-style lint-format lint-types lint-imports lint-docs format gpu bench sweep docs goldens clean distclean

help:
	@echo 'make demo      quantise a real sentence-embedding model to several types and compare'
	@echo 'make test      all tests (PYTEST_ARGS="-k word" for some)'
	@echo 'make lint      ruff, mypy, the import contract, and the documentation builds'
	@echo 'make format    let ruff put the code in order'
	@echo 'make gpu       GPU tests and benchmarks with PYTHON=python3 and the packages it has'
	@echo 'make bench     benchmarks that need no GPU'
	@echo 'make sweep     all schedules and the accuracy of all types: hours (SWEEP="--every 40" ACCURACY=--quick for a part)'
	@echo 'make docs      build the documentation into site/'
	@echo 'make goldens   write golden files anew; read the diff'
	@echo 'make clean     remove caches and build products (distclean: .venv too)'

# One stamp for each set of extras. An environment that works is upgraded in place, a broken one is made anew.
$(VENV)/.ready-%: pyproject.toml $(CONSTRAINTS)
	@if ! $(PY) -c '$(USABLE)' >/dev/null 2>&1 || ! $(PY) -m pip --version >/dev/null 2>&1; then \
		python=$$($(find_python)); \
		if [ -z "$$python" ]; then \
			echo 'tilus needs Python 3.10 or later with venv; none of python3.10 to 3.13 and python3 is one' >&2; exit 1; fi; \
		echo "making $(VENV) with $$($$python --version)"; \
		$$python -m venv --clear $(VENV_FLAGS) $(VENV) || exit 1; \
	fi
	@echo 'installing tilus[$*] into $(VENV)'
	@$(PY) -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$*]'
	@touch $@

demo: $(VENV)/.ready-demo
	@$(PY) examples/quantize_minilm.py

test: $(VENV)/.ready-test
	$(PY) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# `make -k lint` runs all of them although one fails.
lint: lint-style lint-format lint-types lint-imports lint-docs

lint-style: $(VENV)/.ready-dev
	$(PY) -m ruff check .

lint-format: $(VENV)/.ready-dev
	$(PY) -m ruff format --check .

lint-types: $(VENV)/.ready-dev
	$(PY) -m mypy

lint-imports: $(VENV)/.ready-dev
	@$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-cache

lint-docs: $(VENV)/.ready-dev
	$(PY) -m mkdocs build --strict --quiet

format: $(VENV)/.ready-dev
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

# Both parts run even when the first fails: time on a GPU machine is dear.
gpu:
	@status=0; \
	TILUS_REQUIRE_GPU=1 $(PYTHON) -m pytest -m gpu -p no:cacheprovider $(PYTEST_ARGS) || status=$$?; \
	if [ -f benchmarks/run_gpu.py ]; then $(PYTHON) benchmarks/run_gpu.py || status=$$?; fi; \
	exit $$status

# Files with a leading underscore are parts of others; sweeps take hours.
SWEEPS := benchmarks/shipped_schedules.py benchmarks/accuracy_sweep.py
bench: $(VENV)/.ready-bench
	@status=0; for file in $(filter-out benchmarks/run_gpu.py $(SWEEPS),$(wildcard benchmarks/[a-z]*.py)); do \
		echo "== $$file"; $(PY) $$file || status=$$?; done; exit $$status

sweep: $(VENV)/.ready-bench
	@status=0; $(PY) benchmarks/shipped_schedules.py $(SWEEP) || status=$$?; \
	$(PY) benchmarks/accuracy_sweep.py $(ACCURACY) || status=$$?; exit $$status

docs: $(VENV)/.ready-dev
	$(PY) -m mkdocs build --strict
	@echo 'open site/index.html'

goldens: $(VENV)/.ready-test
	$(PY) -m pytest -m golden --update-golden $(PYTEST_ARGS)
	@git status --short -- tests 2>/dev/null || true

clean:
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
