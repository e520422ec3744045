# Needs Python 3.11 or newer with pip and venv, git and make. Everything runs from .venv, which
# holds exactly what requirements.lock lists; the first target you call sets it up.

PYTHON ?= python3
PROFILE ?= smoke
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
INSTALLED := $(VENV)/.installed
LOG := $(VENV)/setup.log

# Runs commands with their output in the log, whose end is printed if they fail.
quiet = { $(1); } >> $(LOG) 2>&1 || { tail -n 20 $(LOG); echo 'set-up failed; all output: $(LOG)'; exit 1; } >&2

# Tests that train nothing and start no process.
FAST := $(addprefix tests/,$(addsuffix .py, \
    test_space test_samplers test_methods test_population test_errors test_files test_device test_progress \
    paper/test_summary paper/test_experiments study/test_identity study/test_machine study/test_stored_runs))

# Byte code is kept, whatever the caller's environment says: without it each process imports torch 8 s longer.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast test-long test-browser lint reproduce figures site lab lock bench gpu-day results

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo 'PROFILE=smoke|quick|paper sets the scale (here: $(PROFILE)), ARGS="..." adds options,'
	@echo 'PYTHON=python3.12 names another Python to set up with.'

setup: $(INSTALLED) ## install the pinned packages into .venv, and notebook diffs for git in this clone (others do it when needed)

test: lint ## lint, then run the tests (ARGS="-k name")
	$(PY) -m pytest $(ARGS)

test-fast: $(INSTALLED) ## run the tests of some modules that train nothing, in under a minute
	$(PY) -m pytest $(FAST) $(ARGS)

test-long: $(INSTALLED) ## run the tests with real clusters, processes, kills and notebooks (last result: tests/LONG.md)
	$(PY) -m pytest -m long $(ARGS)

test-browser: site ## look at the site and drive the explorer notebook in a real browser
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	    || { echo 'needs Chromium and its driver: on Debian, apt-get install chromium chromium-driver' >&2; exit 1; }
	$(PY) -m pytest -m browser -n 0 $(ARGS)

lint: $(INSTALLED) ## check code and notebooks with ruff, types with mypy, who imports whom with import-linter; print sizes
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	-@$(PY) .ci/size.py

reproduce: $(INSTALLED) ## run the study at PROFILE and write its figures
	$(PY) -m rsslib reproduce --profile $(PROFILE) $(ARGS)

bench: $(INSTALLED) ## print the benchmarks' tables: ours against the official package, throughput, cost, memory
	@for name in training_step evaluation concurrency scaling memory kernels profile_step; do \
	    $(PY) benchmarks/$$name.py || exit 1; done

gpu-day: $(INSTALLED) ## check, measure and train all that needs a GPU (docs/cuda.md; ARGS=--rehearse on a CPU)
	$(PY) benchmarks/gpu_day.py $(ARGS)

figures: $(INSTALLED) ## draw the figures again from stored results
	$(PY) -m rsslib figures --profile $(PROFILE) $(ARGS)

site: build/executed ## write the documentation with executed notebooks to build/site
	@rm -rf build/site
	$(PY) -m sphinx -q -W --keep-going -c docs . build/site
	@echo 'site: build/site/index.html'

# The notebooks on stored results, executed again when they, the code or the results have changed.
build/executed: $(INSTALLED) $(wildcard notebooks/*.ipynb) $(shell find rsslib rsstudy data/results/quick data/results/paper \
    -name '*.py' -o -name run.json)
	$(PY) -m rsslib figures --profile quick --seeds 0 1 2
	$(PY) -m rsslib figures --profile paper
	@mkdir -p build && touch $@

results: $(INSTALLED) ## write the tables of README.md and docs/results.md from the stored results
	$(PY) .ci/results.py

lab: $(INSTALLED) ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

lock: $(INSTALLED) ## bring requirements.lock in line with pyproject.toml (ARGS=--upgrade for newer versions)
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-emit-index-url --no-annotate -o requirements.lock $(ARGS)

# The packages. A .venv of another Python is replaced. pip fetches only uv, in the lock's version and
# checked by its hashes; uv fetches the rest.
$(VENV)/.packages: requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rsslib needs Python 3.11 or newer, \
	but $(PYTHON) is %s: name another one, as in make PYTHON=python3.12" % sys.version.split()[0])'
	@test "$$($(PY) -c 'import pip, sys; print(sys.version)' 2>/dev/null)" = \
	    "$$($(PYTHON) -c 'import sys; print(sys.version)')" \
	    || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo 'installing what requirements.lock lists into $(VENV), minutes and 5.5 GB; details: $(LOG)'
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	@$(call quiet,$(PY) -m pip install --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.txt \
	    && $(UV) pip sync --python $(PY) --require-hashes --compile-bytecode requirements.lock)
	@touch $@

# The project, editable and offline: its build backend is one of the packages. nbdime's git drivers are
# named by their path, so that git finds them without an activated .venv.
$(INSTALLED): $(VENV)/.packages pyproject.toml
	@$(call quiet,$(UV) pip install --python $(PY) --offline --no-deps --no-build-isolation -e . \
	    && $(PY) -m compileall -q rsslib rsstudy)
	@test ! -e .git || { $(PY) -m nbdime config-git --enable \
	    && git config diff.jupyternotebook.command '$(VENV)/bin/git-nbdiffdriver diff' \
	    && git config merge.jupyternotebook.driver '$(VENV)/bin/git-nbmergedriver merge %O %A %B %L %P'; } \
	    || echo 'note: git shows notebook changes as plain text, because nbdime could not be configured'
	@touch $@
