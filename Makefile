PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-fast test-sweeps test-suites test-cluster test-wheel test-browser chaos soak fuzz results \
	lint docs bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch comes first and by itself, at the exact tested version, so that the second command finds it in place and leaves
# it alone: a torch that pip picks along with the rest can be another build, which fetches gigabytes of CUDA packages.
# A CPU-only 2.13.0 that is in .venv already is kept. mamba-ssm comes last, without its kernels, for the tests
# to compare with its reference functions; past pip's cache, which would hand out this wheel where kernels are wanted.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e '.[envs,tune,compression,offline,tensorboard,export,minigrid,popgym,docs,board,dev]'
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
		$(BIN)/python -m pip install -c constraints.txt --no-cache-dir --no-build-isolation --no-deps mamba-ssm
	@touch $@

demo: .venv/.installed  ## train MetaFrozenLake on Ray, two minutes on two cores, and draw its curves
	$(BIN)/python -m amago_ray.train --config configs/meta_frozen_lake.gin --overwrite
	$(BIN)/amago-ray plot runs/meta_frozen_lake

# What starts no process runs beside more of its kind, one on each core; what does, two files at a time.
# PASSIVE: threads that wait for each other sleep; where others want their cores too, spinning costs a hundredfold.
test: .venv/.installed  ## run all tests
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 -m "not processes"
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist loadfile -m processes

test-fast: .venv/.installed  ## run what starts no process and trains nothing, in a minute or two
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 -m "not processes and not learning"

test-sweeps: .venv/.installed  ## run whole hyperparameter sweeps, killed and resumed (minutes)
	$(BIN)/python -m pytest -q tests/system/sweep_cycle.py

test-suites: .venv/.installed  ## try every suite with its own package, each in an environment of its own (downloads)
	$(BIN)/python -m pytest -q tests/system/suites_cycle.py

test-cluster: .venv/.installed  ## try cluster/local.yaml on machines made of namespaces: as root, with an ssh server
	$(BIN)/python -m pytest -q tests/system/cluster_cycle.py

test-wheel: .venv/.installed  ## install a wheel into a clean environment and train from there (minutes)
	$(BIN)/python -m pytest -q --timeout 3000 tests/system/wheel_cycle.py

chaos: .venv/.installed  ## kill, freeze and starve a run of disk for twenty minutes (CHAOS_S=...); check what is left
	$(BIN)/python -m pytest -q tests/system/chaos_cycle.py
	KILLS=10 $(BIN)/python -m pytest -q tests/system/test_determinism.py -k killed

soak: .venv/.installed  ## watch memory and open files of a run for an hour (SOAK_S=...)
	$(BIN)/python -m pytest -q tests/system/soak_cycle.py

test-browser: .venv/.installed  ## look at the board in headless Chromium while a run goes on
	$(BIN)/python -m pytest -q tests/system/browser_cycle.py

fuzz: .venv/.installed  ## try thousands of odd settings and damaged files (an hour)
	FUZZ_EXAMPLES=3000 $(BIN)/python -m pytest -q tests/errors/test_fuzz.py

lint: .venv/.installed  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy amago_ray

results: .venv/.installed  ## run a task of results/tasks.toml with three seeds and record it: make results TASK=pendulum
	$(BIN)/python -m results.run $(TASK)

docs: .venv/.installed  ## build the documents as a site, build/site; warnings are errors, links are checked
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees -c docs . build/site
	@echo "open build/site/index.html"

bench: .venv/.installed  ## measure every stage beside its limit or a peer, in one table (ten minutes)
	$(BIN)/python benchmarks/bench.py

clean:  ## remove caches and build products; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
