# Every target works on a fresh machine: it sets up .venv first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Its wheels differ from index to index (CPU, CUDA, ROCm): a version, and no hash.
TORCH := torch==2.13.0
STAMP := $(VENV)/.installed
# Four test files at a time on two cores, for some wait; the long ones first (tests/conftest.py).
PARALLEL := -n 4 --dist loadfile --no-loadscope-reorder
# pip's bars would fill a log; a user in a terminal waits about a minute.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

.PHONY: run results test test-unit test-vllm test-litellm test-repeat coverage lint audit pins setup devcluster clean

run: setup  ## the whole pipeline on the embedded model; ARGS="CONFIG.yaml key.sub=value" for another
	$(BIN)/python jobs/launch.py $(ARGS)

results: setup  ## the tables of docs/results.md, each a run that goes on where it stopped; ARGS="key.sub=value"
	for config in configs/results/*.yaml configs/results/society/*.yaml; do \
		$(BIN)/python jobs/launch.py $$config $(ARGS) || exit 1; \
	done
	$(BIN)/python jobs/report.py runs/results-society-*

# Hundreds of processes are started, and what they import is compiled once.
test test-unit test-vllm test-litellm test-repeat coverage: export PYTHONDONTWRITEBYTECODE :=

test: setup  ## all tests, four files at a time: integration (real Slurm, DeepSpeed, engines) and unit
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-unit: setup  ## the tests that need a minute together, no network and no model
	$(BIN)/python -m pytest $(PARALLEL) -m "not integration and not gpu and not slow" $(ARGS)

# Servers themselves, each in an environment of its own: vLLM's has 3.4 GB, LiteLLM's 0.8. That one cannot be installed is a
# warning; that its tests fail, or take more than LIMIT_S, is an error.
test-vllm: LIMIT_S := 720
test-litellm: LIMIT_S := 180
test-vllm test-litellm: test-%: setup  ## the server itself (vLLM on CPUs, LiteLLM's proxy), installed once into .venv-NAME
	@if $(BIN)/python tests/integration/install_server.py $* .venv-$*; then \
		SALIGN_SERVER=$(CURDIR)/.venv-$* timeout --verbose --kill-after=30 $(LIMIT_S) \
			$(BIN)/python -m pytest $(ARGS) tests/integration/test_$*.py; \
	else \
		echo "warning: $* itself was not tried" >&2; \
	fi

test-repeat: setup  ## all tests N times (5), beside a busy loop on each of two cores; stops at the first that fails
	@for core in 1 2; do while :; do :; done & loops="$$loops $$!"; done; trap "kill $$loops" EXIT; \
	for round in $$(seq $(or $(N),5)); do \
		echo "round $$round"; $(BIN)/python -m pytest $(PARALLEL) $(ARGS) || exit 1; \
	done

coverage: setup  ## what the unit tests go through, by line and branch
	$(BIN)/python -m pytest $(PARALLEL) -m "not integration and not gpu" --cov=salign --cov-branch \
		--cov-report=term-missing:skip-covered $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: setup  ## known vulnerabilities of what is installed; a warning where there are some or nobody can be asked
	@$(BIN)/pip-audit --local --skip-editable --progress-spinner off \
		|| echo "warning: pip-audit found vulnerabilities, or could not ask (above)" >&2

pins:  ## constraints.txt with the hashes of all its files; needs uv. To add or change a package, write name==version into it first
	UV_CUSTOM_COMPILE_COMMAND="make pins" uv pip compile --quiet --no-deps --universal --python-version 3.11 \
		--generate-hashes --no-annotate constraints.txt --output-file constraints.txt

devcluster:  ## a real Slurm of 4 nodes on this machine (Debian, root); ARGS="down", "crash n2", "revive n2", "status"
	slurm/devcluster.sh $(or $(ARGS),up)

setup: $(STAMP)  ## .venv with all that is needed

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@# Debian ships venv as a package of its own.
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); \
		echo "installing python3-venv"; apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); } \
		|| { echo "error: $(PYTHON) -m venv fails; install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@echo "installing into $(VENV), once (about a minute)"
	@# What is built from source is built with the pinned setuptools, which comes first.
	@sed -n '/^setuptools==/,/[^\\]$$/p' constraints.txt | $(PIP) install --require-hashes --requirement /dev/stdin
	@$(PIP) install --require-hashes --no-deps --no-build-isolation --requirement constraints.txt
	@$(PIP) install $(TORCH)
	@# From no index: what setup.cfg asks for and constraints.txt leaves out is an error.
	@$(PIP) install --no-index --no-build-isolation --editable ".[dev]"
	@touch $@

clean:  ## removes .venv and caches; runs stay
	rm -rf $(VENV) .venv-vllm .venv-litellm *.egg-info .mypy_cache .ruff_cache .pytest_cache
