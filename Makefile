# Every target does its own set-up; it needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One environment in two steps: the package alone, and what the tests need besides.
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs
# The versions that the tests passed with are one set for Python 3.11, where jax ends at 0.10.2, and one for newer Pythons.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-3.13.txt")')
INSTALL = PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --quiet
# Compiled programs are kept between runs, those of a month at most.
PROGRAMS := $(VENV)/programs
test check slow docs: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/$(PROGRAMS)
# Three processes, since some tests wait for others of their own; what a file's tests share is computed once.
# One thread each for linear algebra, which waits for itself where there are more threads than cores.
test check slow docs: export OPENBLAS_NUM_THREADS := 1
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
RUN := $(BIN)/python scripts

.PHONY: demo test slow check docs wheel format clean help programs

help:
	@echo "make demo   find where object scale lives in two embedded networks, cut them there, and test whether that helps to"
	@echo "            read nucleus size on rendered tissue; writes runs/demo/report.html and runs/demo_tissue/report.html"
	@echo "make test   run the tests, but for the large ones and the simulations"
	@echo "make check  format check, lint, types and all tests but the simulations"
	@echo "make slow   the simulations, which take minutes each"
	@echo "make docs   build the documentation in site/, with the notebooks run and all links checked"
	@echo "make wheel  build the wheel in dist/ and try it in an empty environment outside this folder"
	@echo "make format format the code"

demo: $(DEMO)
	@echo "1 of 2: where object scale lives"
	@$(RUN)/reproduce.py --config=configs/demo.py --workdir=runs/demo --overwrite --verbosity=-1 > /dev/null
	@echo "2 of 2: whether cutting there helps to read the size of nuclei"
	@$(RUN)/transfer.py --config=configs/tissue.py --config.trainable=head --config.regions=48 \
	  --workdir=runs/demo_tissue --overwrite --verbosity=-1 > /dev/null
	@$(RUN)/answers.py runs/demo runs/demo_tissue
	@echo
	@echo "To try next:"
	@echo "  where the networks look    $(RUN)/explain.py --method=grad_cam --config=configs/explain.py --workdir=runs/explain"
	@echo "  every experiment           $(RUN)/reproduce.py --config=configs/paper.py:scenes --workdir=runs/paper_scenes"
	@echo "  your weights and images    README.md, \"Quickstart\", and docs/commands.md"

test: programs
	$(PYTEST) -m "not slow and not large"

slow: programs
	$(PYTEST) -m slow

check: programs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/codespell --dictionary=.ci/style.txt README.md CONTRIBUTING.md docs
	$(BIN)/pyright
	$(PYTEST)

docs: $(DOCS)
	@mkdir -p $(PROGRAMS)
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mkdocs build --strict

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && $(PYTHON) -m venv $$outside/venv && \
	  $$outside/venv/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) dist/*.whl && cd $$outside && \
	  venv/bin/scalecov probe --config=configs/demo.py --config.weights=checkpoints/resnet50 --config.scenes=60 \
	    --config.image_class=striped_disc --config.splits=3 --config.permutations=0 --workdir=run && \
	  venv/bin/scalecov prune --weights=checkpoints/resnet50 --scores=run --output=cut

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs site dist

programs: $(READY)
	@mkdir -p $(PROGRAMS)
	@find $(PROGRAMS) -type f -mtime +30 -delete

$(DEMO): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scalecov_jax needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade pip
	@$(INSTALL) --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(READY): $(DEMO)
	@echo "installing what the tests need"
	@$(INSTALL) --constraint $(CONSTRAINTS) --editable ".[test]"
	@touch $@

$(DOCS): $(DEMO)
	@echo "installing what the documentation needs"
	@$(INSTALL) --constraint $(CONSTRAINTS) --editable ".[docs]"
	@touch $@
