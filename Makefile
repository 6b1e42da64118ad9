# Everything the project does on a fresh machine, with Python 3.11 or later and make. `make` alone lists the targets.
#
# All paths are relative, so that the folder of the project may have any name; python is called as a module runner
# because scripts in an environment break where that name has a space.

# Only the command line can change these (an environment variable of the same name cannot).
VENV := .venv
WORKERS := 2
ARGS :=
DATA :=
# The first Python that is new enough; `make setup PYTHON=...` names another.
PYTHON := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$name"; break; }; done)

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# What the C engine is built from: a change builds it anew.
ENGINE := setup.py $(wildcard runtime/c/*.c runtime/c/*.h)

# Nothing of another environment may leak in.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce test test-slow lint format check clean

help: ## list the targets
	@awk 'BEGIN {FS = ":[^#]*## "} /^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## create .venv with the pinned dependencies (PYTHON=python3.12 to choose the interpreter)

$(STAMP): pyproject.toml constraints.txt $(ENGINE)
	@test -n "$(PYTHON)" || { echo "mednca needs Python 3.11 or later and found none." \
		"Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mednca needs Python 3.11 or later; $(PYTHON) does not run or is older." >&2; exit 1; }
	@echo "Setting up $(VENV) with the pinned dependencies (a few minutes) ..." >&2
	@"$(RUN)" -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv "$(VENV)" || { \
		echo "$(PYTHON) cannot create an environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@"$(RUN)" -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools
	@"$(RUN)" -m pip install -qq --disable-pip-version-check -c constraints.txt --no-build-isolation \
		-e '.[train,formats,data,onnx,dev]'
	@touch "$(STAMP)"

demo: setup ## train, predict and judge on phantoms, or on real scans with DATA=folder; writes demo/
	@"$(RUN)" -m mednca.demo $(if $(DATA),--data "$(DATA)") --out demo $(ARGS)

reproduce: setup ## list the experiments behind tables and figures, what they cost (ARGS="table1 --draw" runs a script)
	@"$(RUN)" reproduce $(ARGS)

# One thread per worker: the tests' tensors are small, and threads of several workers would fight for the cores.
test: setup ## run the tests but the slow ones (WORKERS=2, ARGS="-k fire")
	@OMP_NUM_THREADS=1 "$(RUN)" -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-slow: setup ## run the slow tests
	@OMP_NUM_THREADS=1 "$(RUN)" -m pytest -n $(WORKERS) --dist loadfile -m slow $(ARGS) || test $$? -eq 5 # none is

lint: setup ## ruff check, ruff format --check, mypy
	@"$(RUN)" -m ruff check
	@"$(RUN)" -m ruff format --check
	@"$(RUN)" -m mypy

format: setup ## let ruff put the code in order
	@"$(RUN)" -m ruff check --fix
	@"$(RUN)" -m ruff format

check: lint test ## lint and test: what CI runs

clean: ## remove the environments and caches; demo/ and runs/ stay
	@rm -rf "$(VENV)" .venv-ci build dist src/mednca.egg-info src/mednca/_engine.*
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests benchmarks reproduce -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
