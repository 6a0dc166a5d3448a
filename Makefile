# Everything runs in its own virtual environment, .venv; nothing is installed elsewhere.
PYTHON ?= python3
BIN := .venv/bin
# The tested set of versions; other versions of Python take the newest releases.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("-c constraints-py311.txt" if sys.version_info[:2] == (3, 11) else "")')
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS)

.PHONY: demo play train-hf eval-blink eval-gemma compare-results test test-slow test-long test-gpu-compile test-guides lint format docs wheel clean

demo: .venv/.demo  ## record data, train the tiny model, roll it out, evaluate it
	$(BIN)/python -m jworld.train --config=configs/ar_mem.py
	$(BIN)/python -m jworld.evaluate --checkpoint runs/ar_mem

# Any trained world: make play CHECKPOINT=runs/ar_mem ARGS="--players 2"
CHECKPOINT ?= assets/starter

play: .venv/.demo  ## play the starter model, or a trained one, in a browser
	$(BIN)/python -m jworld.play --checkpoint $(CHECKPOINT) --open $(ARGS)

# Commands of the original TheWorld, by their names. CONFIG may be one of its JSON configs.
CONFIG ?= configs/theworld.py
DATA ?= BLINK
GEMMA ?= checkpoints/theworld-base

train-hf: .venv/.demo  ## train TheWorld: make train-hf CONFIG=config.json ARGS="--workdir=runs/mine"
	case $(CONFIG) in *.json) $(BIN)/python -m jworld.train --from-json $(CONFIG) > $(CONFIG:.json=.py);; esac
	$(BIN)/python -m jworld.train --config=$(CONFIG:.json=.py) $(ARGS)

eval-blink: .venv/.demo  ## measure a model on BLINK's tables: make eval-blink MODEL=runs/theworld-full
	$(BIN)/python -m jworld.evaluate --checkpoint $(MODEL) --benchmark blink --data $(DATA) --output results/blink_theworld

eval-gemma: .venv/.demo  ## measure imported Gemma-3 on them
	$(BIN)/python -m jworld.evaluate --checkpoint $(GEMMA) --benchmark blink --data $(DATA) --output results/blink_gemma

compare-results: .venv/.demo  ## show both side by side
	$(BIN)/python -m jworld.evaluate compare results/blink_gemma results/blink_theworld --labels Gemma-3 TheWorld \
		--output results/comparison

test: lint  ## linters, type checker, all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

test-slow: .venv/.test  ## what takes minutes: guides, more meshes, memory, benchmarks, the page of play
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=40

test-long: .venv/.test  ## more than an hour: runs killed ten times, soak tests, more cases and programs
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile

# Without a GPU; in an environment of its own, as the compiler's packages take 2.1 GB.
test-gpu-compile: .venv-gpu/.test  ## programs of every published recipe, compiled for NVIDIA GPUs that are not there
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_enable_triton_gemm=false JAX_DEFAULT_MATMUL_PRECISION=default \
		JAX_ENABLE_COMPILATION_CACHE=false .venv-gpu/bin/python -m pytest -m gpu_compile tests/gpu_compile $(ARGS)

test-guides: .venv/.test  ## every command of README and guides on small stand-ins, which test and test-slow share
	$(BIN)/python -m pytest tests/guides -m "slow or not slow" -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.docs  ## the documentation as a site in site/; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: .venv/bin/python  ## dist/jworld-*.whl, with recipes, tokenizer and starter weights
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:  ## remove what demo and test made, except data and runs
	rm -rf .venv .venv-gpu build dist site .mypy_cache .ruff_cache .pytest_cache *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints-py311.txt
	$(INSTALL) -e ".[demo,play]"
	touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints-py311.txt
	$(INSTALL) -e ".[demo,play,gym,torch,quantize,test,dev,docs]"
	touch $@

.venv-gpu/.test: pyproject.toml constraints-py311.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[gpu-compiler]" pytest
	touch $@

.venv/.docs: .venv/bin/python pyproject.toml constraints-py311.txt
	$(INSTALL) -e ".[docs]"
	touch $@
