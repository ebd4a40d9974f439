# Faculty's commands. Each target makes and uses .venv in this folder; it is installed again only when the lock or
# pyproject.toml changed. `make help` lists the targets. Another interpreter: `make PYTHON=python3.12 run`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
CODE := pipeline teachers students tune_spaces
UV := $(VENV)/lock/bin/uv

.DEFAULT_GOAL := help
.PHONY: help install run run-realworld run-pisr run-recognition test test-all bench bench-gpu check format ui lock clean distclean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

install: $(STAMP)  ## make .venv from requirements.lock

# torch goes first, with its own dependencies (on Linux with CUDA these are its nvidia packages, which the lock leaves
# to it); everything else is in the lock, so --no-deps keeps away what the lock leaves out on purpose (see its head).
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] < (3, 14); \
	  sys.exit(None if ok else "Faculty needs Python 3.10 to 3.13, found %d.%d. Try: make PYTHON=python3.12 ..." \
	  % sys.version_info[:2])'
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making $(VENV) with $$($(PYTHON) --version)"; \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	       $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
	  || { rm -rf $(VENV); echo "Cannot make a virtual environment: install your system's python3-venv." >&2; exit 1; }; \
	fi
	@echo "Installing torch (1/3)"
	@$(PIP) install -qq --constraint requirements.lock torch
	@echo "Installing the other packages of requirements.lock (2/3), two to three minutes"
	@$(PIP) install -qq --no-deps --requirement requirements.lock
	@echo "Installing Faculty from this folder (3/3)"
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP)  ## the demo: three teachers, one student, a table and a picture
	@$(BIN)/faculty run recipes/demo.yaml

run-realworld: $(STAMP)  ## degraded LR, a faithful and a sharp teacher fused by bands, a student that follows them
	@$(BIN)/faculty run recipes/realworld_demo.yaml

run-pisr: $(STAMP)  ## the same pictures with a teacher that sees the high-resolution picture (PISR)
	@$(BIN)/faculty run recipes/pisr_fsrcnn_x2_small.yaml

run-recognition: $(STAMP)  ## digits at 4 x 4 from a teacher at 8 x 8: scratch, KD, RKD, HORKD
	@$(BIN)/faculty run recipes/recognition_digits.yaml

# Files in their own order: by the number of their tests, which is the default, the longest would come last.
test: $(STAMP)  ## all tests but the slow ones
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(STAMP)  ## all tests
	@$(BIN)/python -m pytest -q

bench: $(STAMP)  ## measure against the usual ways, write benchmarks/results.md
	@$(BIN)/python -m benchmarks

bench-gpu: $(STAMP)  ## the same for what a GPU does, printed with the card's name
	@$(BIN)/python -m benchmarks gpu

# After the tools, two searches: no folder of somebody's machine is named, and ray and mlflow stay in the engine
# and the command.
check: $(STAMP)  ## lint, format, types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@! grep -rnIE --exclude-dir=__pycache__ '(^|[^A-Za-z0-9_.~$$-])/(work|tmp|root|home)/' \
	  $(CODE) recipes demo benchmarks tests docs .ci cluster.yaml pyproject.toml README.md CHANGELOG.md
	@! grep -rnE --include='*.py' --exclude-dir=engine --exclude-dir=cli '^ *(import|from) (ray|mlflow)([. ]|$$)' $(CODE)
	@echo "check: no complaints"

format: $(STAMP)  ## let ruff rewrite what it can
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

ui: $(STAMP)  ## open MLflow's page on the runs' store
	@$(BIN)/faculty ui

# Keeps every version that still fits; delete a line of the lock to move that package to its newest version.
lock: $(STAMP)  ## resolve requirements.lock again from pyproject.toml
	@test -x $(UV) || { $(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/python -m pip install -qq uv; }
	@sed -n '/^#/p' requirements.lock > $(VENV)/new.lock
	@$(UV) pip compile --quiet --no-python-downloads --universal --python-version 3.10 --extra dev --extra recognition \
	  --extra ncnn --extra perceptual --no-header --no-annotate --output-file requirements.lock pyproject.toml
	@sed -E "s/ or sys_platform == '(win32|emscripten)'//g" requirements.lock \
	  | grep -vE "^(nvidia-|cuda-|triton=|torchvision=)|sys_platform == '(win32|emscripten)'" >> $(VENV)/new.lock
	@mv $(VENV)/new.lock requirements.lock

clean:  ## remove what tools left here (runs, caches and .venv stay)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## the same and .venv
	@rm -rf $(VENV)
