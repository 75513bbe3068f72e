# The only interface: everything that CI, a contributor or a newcomer runs is a target of this file.

PYTHON        ?= python3
PYTHON_LOWEST ?= python3.10
VENV          := .venv
VENV_LOWEST   := .venv-lowest
STAMP         := $(VENV)/.installed
STAMP_LOWEST  := $(VENV_LOWEST)/.installed
# DeepSpeed, which accelerate imports wherever it is installed: only where its tests run.
STAMP_ENGINES := $(VENV)/.installed-engines
# The tests come in three parts, and the full products that only one run in many needs.
FAST          := not slow and not data and not distributed and not gpu and not everything
SLOW          := (slow or data or gpu) and not distributed and not everything
DISTRIBUTED   := distributed and not everything
EVERYTHING    := everything
# One worker a core; each takes neighbouring tests from the others when it has none left. WORKERS=0: in one process.
WORKERS       ?= logical
PARALLEL      := -n $(WORKERS) --dist worksteal
# More arguments for pytest: make test PYTEST_ARGS="-k restore -x"
PYTEST_ARGS   ?=
# make gpu: speed, noise or glue; its data
STAGE         ?= speed
DATA          ?= ../shared/data
# Sentences for the benchmark of lambda_max: make bench SST2=train.parquet
SST2          ?= ../shared/data/glue/sst2/train.parquet

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow test-distributed test-all test-everything test-floor test-floor-fast lint docs format bench results \
  gpu dist clean

# Nothing here needs the network once the packages are installed.
test test-% run bench results: export HF_HUB_OFFLINE = 1
test test-% run bench results: export TOKENIZERS_PARALLELISM = false
# Where DeepSpeed is installed, it says on stdout that it found no GPU unless told so.
test test-% run bench results: export DS_ACCELERATOR = cpu
# Where the caller forbids to keep compiled files, every process of a test compiles all test files again.
test test-%: export PYTHONDONTWRITEBYTECODE =

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install into .venv what all but test-distributed needs (nothing to do when it is up to date)

run: $(STAMP)  ## the main job: AdamW against SAM on noisy digits, side by side
	@$(VENV)/bin/python scripts/side_by_side.py

test: $(STAMP)  ## the fast tests
	@$(VENV)/bin/python -m pytest $(PARALLEL) -m "$(FAST)" $(PYTEST_ARGS)

test-slow: $(STAMP)  ## the slow ones and real data
	@$(VENV)/bin/python -m pytest $(PARALLEL) --durations=15 -m "$(SLOW)" $(PYTEST_ARGS)

test-distributed: $(STAMP_ENGINES)  ## those that start several processes, one after the other
	@$(VENV)/bin/python -m pytest --durations=15 -m "$(DISTRIBUTED)" $(PYTEST_ARGS)

test-all: test test-slow test-distributed  ## all of the above

test-everything: $(STAMP_ENGINES)  ## the full products too, of which the others run a covering part (an hour)
	@$(VENV)/bin/python -m pytest $(PARALLEL) --durations=15 -m "$(EVERYTHING)" $(PYTEST_ARGS)

test-floor: $(STAMP_LOWEST)  ## test-all with the lowest supported versions (large download)
	@$(VENV_LOWEST)/bin/python -m pytest $(PARALLEL) -m "not distributed and not everything" $(PYTEST_ARGS)
	@$(VENV_LOWEST)/bin/python -m pytest -m "$(DISTRIBUTED)" $(PYTEST_ARGS)

test-floor-fast: $(STAMP_LOWEST)  ## the fast tests with them
	@$(VENV_LOWEST)/bin/python -m pytest $(PARALLEL) -m "$(FAST)" $(PYTEST_ARGS)

lint: $(STAMP)  ## style, format, types, and the documentation
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(MAKE) --no-print-directory docs

docs: $(STAMP)  ## the documentation into site/, strictly and without a network
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet  # the variable: no advertisement of a successor

format: $(STAMP)  ## let ruff fix what it can
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: $(STAMP)  ## time and memory of a step against a plain one and against other libraries, lambda_max too
	@$(VENV)/bin/python scripts/benchmarks/bench.py
	@$(VENV)/bin/python scripts/benchmarks/bench_peers.py
	@if [ -f "$(SST2)" ]; then $(VENV)/bin/python scripts/benchmarks/bench_flatness.py --data "$(SST2)"; fi

results: $(STAMP)  ## the tables and figures of README.md and docs; then a small grid, end to end
	@$(VENV)/bin/python scripts/benchmarks/plot.py
	@$(VENV)/bin/python scripts/benchmarks/compare.py scripts/benchmarks/grids/small.yaml

gpu: $(STAMP)  ## with a CUDA device, under 10 minutes a stage: make gpu STAGE=speed, noise or glue (again: go on)
	@if [ "$(STAGE)" = speed ]; then $(VENV)/bin/python scripts/benchmarks/bench_gpu.py \
	  --output scripts/benchmarks/results/bench/gpu.json; \
	else $(VENV)/bin/python scripts/benchmarks/compare.py scripts/benchmarks/grids/gpu_$(STAGE).yaml --data "$(DATA)" \
	  --output scripts/benchmarks/results/gpu_$(STAGE) --minutes 8 || [ $$? = 1 ]; fi  # 1: there is more to run

dist: $(STAMP)  ## the wheel and the source archive as they would be published, into dist/
	@rm -rf dist
	@$(VENV)/bin/python -m build --no-isolation --outdir dist .
	@$(VENV)/bin/python -m twine check --strict dist/*

clean:  ## remove the virtual environments, build files and caches; outputs stay
	@rm -rf $(VENV) $(VENV_LOWEST) build dist site *.egg-info .bench .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find hf_sam scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,python,venv,constraints,extras)
# --no-compile: half of the time would go into compiling files that are never imported. Those that are, are then.
# --use-pep517: the pip of Python 3.10 would build seqeval, which has no wheel, in a way that no longer works.
define install
	@$(1) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	@echo "Installing into $(2) (minutes the first time)"
	@$(1) -m venv $(2)
	@$(2)/bin/python -m pip install --quiet --quiet --no-compile --use-pep517 --disable-pip-version-check -c $(3) -e '.[$(4)]'
	@touch $@
endef

$(STAMP): pyproject.toml constraints.txt
	$(call install,$(PYTHON),$(VENV),constraints.txt,$(strip cli,test,dev,docs))

$(STAMP_ENGINES): $(STAMP)
	$(call install,$(PYTHON),$(VENV),constraints.txt,deepspeed)

$(STAMP_LOWEST): pyproject.toml constraints-lowest.txt
	$(call install,$(PYTHON_LOWEST),$(VENV_LOWEST),constraints-lowest.txt,$(strip cli,test))
