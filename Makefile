# `make demo` and `make test` do all their own set-up; they need Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The versions that the tests passed with are one set for Python 3.11, where jax ends at 0.10.2, and one for newer Pythons.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-3.13.txt")')
# Three processes, since some tests wait for others of their own; what a file's tests share is computed once.
# One thread each for linear algebra, which waits for itself where there are more threads than cores.
test check: export OPENBLAS_NUM_THREADS := 1
PYTEST := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check format clean help

help:
	@echo "make demo   find where object scale lives in two embedded networks, cut them there, and test whether that helps to"
	@echo "            read nucleus size on rendered tissue; writes runs/demo/report.html and runs/demo_tissue/report.html"
	@echo "make test   run the tests"
	@echo "make check  format check, lint, types and tests"
	@echo "make format format the code"

demo: $(READY)
	$(BIN)/python scripts/reproduce.py --config=configs/demo.py --workdir=runs/demo --overwrite
	$(BIN)/python scripts/transfer.py --config=configs/tissue.py --config.trainable=head --config.regions=48 \
	  --workdir=runs/demo_tissue --overwrite

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest $(PYTEST)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scalecov_jax needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[test]"
	@touch $@
