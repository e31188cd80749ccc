# Every target sets up its own .venv when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: setup demo demo-fashion test test-fast check fmt bench bench-quick bench-all mutants nightly clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.11 ...)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/ddpm demo

# Debian's package dataset-fashion-mnist, or FASHION=a folder with the four files.
FASHION ?= /usr/share/datasets/fashion-mnist
demo-fashion: $(STAMP)
	@test -d $(FASHION) || { echo "$(FASHION) is not there: apt-get install dataset-fashion-mnist, or FASHION=FOLDER"; exit 2; }
	$(BIN)/ddpm demo --recipe fashion-mnist --source $(FASHION)

# Two test processes: one folder of Ray tests is one piece of work, with a cluster of its own.
XDIST := -n 2 --no-loadscope-reorder

test: $(STAMP)
	$(BIN)/python -m pytest $(XDIST)

# No Ray, no server: what to run after every change.
test-fast: $(STAMP)
	$(BIN)/python -m pytest $(XDIST) -m "not (nightly or ray or s3 or faults or e2e or slow)" tests/test_architecture.py tests/unit tests/property tests/oracle

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Needs accelerate beside the rest, for the peer's training loop. BENCH=--save keeps results, BENCH=--check fails on a
# missed bar.
$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/suite.py $(BENCH)

bench-quick: $(VENV)/.bench
	$(BIN)/python benchmarks/suite.py --quick $(BENCH)

bench-all: $(VENV)/.bench
	$(BIN)/python benchmarks/suite.py --all $(BENCH)

# Breaks every coefficient of the diffusion core in turn; ends with 1 if the tests notice one of them not.
mutants: $(STAMP)
	$(BIN)/python tests/mutants.py

nightly: check mutants
	$(BIN)/python -m pytest -m "nightly or not nightly"

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
