# Each target builds .venv when it is missing and installs what is missing in it. `make` alone lists them.

# Any Python >= 3.11. If this one is older, python3.11 to python3.14 are tried.
PYTHON ?= python3

# What `pip install` gets when the .venv has no torch yet; torchvision must be the one made for this torch. On Linux PyPI's torch
# comes with CUDA (several GB). A CPU build is 0.2 GB:
#   make test TORCH="torch==2.14.1 torchvision==0.29.1 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.14.1 torchvision==0.29.1

# Passed on:  make test ARGS="-k mend -x"   make demo ARGS="--help"
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo test check bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    edit the embedded vision-language model and show what changed"
	@echo "make test    all tests, on the CPU, offline"
	@echo "make check   ruff, pyright, import-linter"
	@echo "make bench   the benchmark on the embedded model, into runs/bench (continued if it was stopped)"
	@echo "make clean   remove caches and build outputs (.venv and runs/ stay)"

demo: .venv/.installed
	$(BIN)/mmedit demo $(ARGS)

test: .venv/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

bench: .venv/.installed
	$(BIN)/mmedit bench --out runs/bench $(ARGS)

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find mmedit scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that `python -m venv` writes: an interrupted one is done again.
$(BIN)/pip:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14; do \
	    if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Creating .venv with $$($$python -V)"; exec $$python -m venv .venv; \
	    fi; \
	done; \
	echo "mmedit needs Python 3.11 or newer with its venv module; \`$(PYTHON)\` is: $$($(PYTHON) -V 2>&1 | head -n 1)." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# One after the other, so that `make -j` never has two pips in one .venv.
.venv/.installed: pyproject.toml | $(BIN)/pip
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
	    { echo "Installing $(TORCH): minutes, 0.2 GB for a CPU build, several GB with CUDA"; $(PIP) $(TORCH); }
	@echo "Installing mmedit and what it needs: about a minute, 0.1 GB"
	@$(PIP) --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing what tests and checks need: half a minute, 0.1 GB"
	@$(PIP) --editable '.[dev]'
	@touch $@
