# Each target creates .venv if there is none and installs what it needs. `make` alone lists the targets.

# Any Python >= 3.11. If python3 is older, make looks for python3.11 to python3.14.
PYTHON ?= python3

# Arguments of `pip install` if the .venv has no torch yet. torchvision must be the version made for this torch. On Linux PyPI's
# torch comes with CUDA (several GB). A CPU build takes 0.2 GB:
#   make test TORCH="torch==2.14.1 torchvision==0.29.1 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.14.1 torchvision==0.29.1

# Further arguments:  make test ARGS="-k mend -x"   make demo ARGS="--help"
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo play test check fuzz bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    train MEND on the embedded model, edit the model and show what changed"
	@echo "make play    open the playground: ask the embedded model, edit it, and see what changed, in a browser"
	@echo "make test    run all tests on the CPU; no network is needed"
	@echo "make check   run ruff, pyright and import-linter"
	@echo "make fuzz    give mmedit 10,000 odd inputs, and count tracebacks, hangs and silent skips"
	@echo "make bench   run the benchmark on the embedded model into runs/bench; the same command continues a stopped run."
	@echo "             Then check that no method became slower, as a ratio to the work that cannot be avoided"
	@echo "make clean   remove caches and build outputs; keep .venv and runs/"

demo: .venv/.installed
	$(BIN)/mmedit demo $(ARGS)

play: .venv/.installed-play
	$(BIN)/mmedit play $(ARGS)

test: .venv/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

fuzz: .venv/.installed-dev
	$(BIN)/python scripts/fuzz $(ARGS)

bench: .venv/.installed
	$(BIN)/mmedit bench --out runs/bench $(ARGS)
	$(BIN)/python benchmarks/floor.py --check benchmarks/floor.json

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find mmedit scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# `python -m venv` writes pip last. If it was interrupted, pip is missing and the .venv is created again.
$(BIN)/pip:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14; do \
	    if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Creating .venv with $$($$python -V)"; exec $$python -m venv .venv; \
	    fi; \
	done; \
	echo "mmedit needs Python 3.11 or newer with its venv module; \`$(PYTHON)\` is: $$($(PYTHON) -V 2>&1 | head -n 1)." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3-venv) or give its path: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# The others depend on the first, so that `make -j` never runs two pips in one .venv.
.venv/.installed: pyproject.toml | $(BIN)/pip
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
	    { echo "Installing $(TORCH): minutes, 0.2 GB for a CPU build, several GB with CUDA"; $(PIP) $(TORCH); }
	@echo "Installing mmedit and what it needs: about a minute, 0.1 GB"
	@$(PIP) --editable .
	@touch $@

.venv/.installed-play: .venv/.installed
	@echo "Installing what the playground needs: half a minute, 0.2 GB"
	@$(PIP) --editable '.[play]'
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing what tests and checks need: half a minute, 0.1 GB"
	@$(PIP) --editable '.[dev]'
	@touch $@
