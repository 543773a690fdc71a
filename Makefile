# Two commands for users: `make demo` and `make test`. Both make and reuse .venv. `make check` is what CI does, and more.
PYTHON ?= python3
BIN := .venv/bin
# One thread a worker: the models in the tests are too small to gain from more.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# pip compiles what it installs file by file, for a minute and a half; COMPILE uses all cores, and leaves out others' tests.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x 'site-packages/.*/tests?/' "$(CURDIR)/.venv/lib" || true
# Else each of the tests' many processes compiles the package, and each session the tests, where the shell has this set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo study-smoke test test-slow test-families test-recipes test-versions coverage lint types docs check clean

demo: .venv/.demo
	HF_HUB_OFFLINE=1 $(BIN)/shadowpeft demo --report report.html

study-smoke: .venv/.demo
	rm -rf runs/study-smoke runs/study-smoke-data
	$(BIN)/python recipes/compare/smoke_data.py runs/study-smoke-data
	HF_HUB_OFFLINE=1 $(BIN)/shadowpeft compare --config recipes/compare/smoke.yaml

# All tests but those that the next three targets run.
test: .venv/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n auto -m "not slow and not families and not recipe"

test-slow: .venv/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal -m "slow and not families and not recipe"

# What is left of the tests of families whose traits others have; for whoever changes arch, decoder or model.
test-families: .venv/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n auto -m families

# Whole runs of recipes, minutes; for whoever changes one, or what it runs.
test-recipes: .venv/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal -m recipe

# A chosen tenth of the tests, on the oldest and a middle transformers that we support; `test` runs on the newest.
test-versions: .venv/.dev
	$(TEST_ENV) tests/versions/run $(VERSIONS)

# Apart from `test`, which it would make take a third longer.
coverage: .venv/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --cov=shadowpeft --cov-report=term:skip-covered

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

# The site, in site/. A link, an anchor or a name that does not resolve fails, and so does a generated page that is stale.
docs: .venv/.dev
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/build.py

check: lint types docs test test-slow test-versions

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "shadowpeft needs Python 3.10 or later; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv

# torch goes first, so that a torch already in .venv (say, a CPU build) is kept.
.venv/.torch: constraints.txt | .venv/bin/python
	$(INSTALL) torch
	touch $@

.venv/.demo: pyproject.toml .venv/.torch
	$(INSTALL) --editable '.[demo]'
	$(COMPILE)
	touch $@

.venv/.dev: pyproject.toml .venv/.torch
	$(INSTALL) --editable '.[dev]'
	$(COMPILE)
	touch $@ .venv/.demo

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build site report.html
