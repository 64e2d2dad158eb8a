# Everything that a fresh machine with Python 3.11 to 3.13, make and git needs: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test e2e servers chaos bench lint lock clean

help:  ## List what there is.
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/\1\t\2/p' Makefile

setup: .venv/.ready  ## Make .venv, which holds the command warmstart.

# uv installs in seconds and pip in minutes, both from the same lock; where uv cannot be had, pip works alone.
.venv/.ready: requirements.lock bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(f"found Python {sys.version.split()[0]}, expected 3.11 to 3.13: set PYTHON=python3.12, say" if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)'
	$(PYTHON) -m venv .venv
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock; \
	then $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock \
	  && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else echo "uv cannot be had here: installing with pip, which takes minutes" \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; fi
	@touch $@

demo: setup  ## The main job on scikit-learn's handwritten digits: a registered model, its scores, where to look.
	$(BIN)/warmstart run conf/image/digits.yaml

TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test: setup  ## All tests but the long ones.
	$(TEST) -m "not e2e and not servers"

e2e: setup  ## The long ones: several processes, clusters, kills, full disks, eight runs at once.
	$(TEST) -m e2e

servers: setup  ## The servers of a team: schedules, kills, passwords, load, a browser.
	$(TEST) -m servers

chaos: setup  ## Kills, contention and damaged input again and again: SEEDS=20 moments, 25 inputs of each kind a seed.
	WARMSTART_SEEDS=$(or $(SEEDS),20) $(TEST) -m chaos

bench: setup  ## Measurements that 20 minutes are enough for, or make bench NAME=feed ARGS="--pairs 7".
	@for name in $(or $(NAME),start orchestration feed memory scaling); do echo "## $$name" && $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

lint: setup  ## Style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lock:  ## Make the locks anew, with hashes and without addresses.
	uv pip compile pyproject.toml --extra timm --extra datasets --extra onnx --extra ray --extra s3 --group test --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet -o requirements.lock
	echo uv | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet -o bootstrap.lock

clean:  ## Remove what the set-up made; runs and models stay.
	rm -rf .venv build *.egg-info
