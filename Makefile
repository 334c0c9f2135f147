# `make demo` and `make test` do all set-up themselves; they need python3 (3.11+), venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# Files go to the processes in the order that tests/conftest.py gives: the longest first.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: docs screenshot demo demo-fresh demo-weights demo-start test check-types test-slow chaos mutants coverage parity parity-files \
	lint lock clean

demo: $(VENV)/.installed
	$(BIN)/python tools/make_demo_data.py --output $(DEMO)/source
	$(BIN)/python tools/prepare_data.py --source $(DEMO)/source --data_dir $(DEMO)/data
	$(BIN)/python -m unit_jax.main --config=configs/demo.py --workdir=$(DEMO)

# The weights that come with the package, from a finished `make demo`.
demo-weights: $(VENV)/.installed
	$(BIN)/python -m unit_jax.cli demo-weights --workdir $(DEMO) --data_dir $(DEMO)/data

# The ResNet and the text encoder that the demo starts from, trained on other data.
demo-start: $(VENV)/.installed
	$(BIN)/python tools/make_demo_data.py --output $(DEMO)-start/source --seed 1 --scale 2
	$(BIN)/python tools/prepare_data.py --source $(DEMO)-start/source --data_dir $(DEMO)-start/data
	$(BIN)/python -m unit_jax.main --config=configs/demo_start.py:colors --workdir=$(DEMO)-start/colors
	$(BIN)/python -m unit_jax.main --config=configs/demo_start.py:shapes --workdir=$(DEMO)-start/shapes
	$(BIN)/python -m unit_jax.main --config=configs/demo_start.py:textures --workdir=$(DEMO)-start/textures
	$(BIN)/python -m unit_jax.cli demo-weights --part backbone --workdir $(DEMO)-start/textures
	$(BIN)/python -m unit_jax.main --config=configs/demo_start.py:texts --workdir=$(DEMO)-start/texts
	$(BIN)/python -m unit_jax.main --config=configs/demo_start.py:pairs --workdir=$(DEMO)-start/pairs
	$(BIN)/python -m unit_jax.cli demo-weights --part text_encoder --workdir $(DEMO)-start/pairs

# The pictures of the page in README and docs, made by the browser test; needs a Chromium.
screenshot: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check "playwright>=1.45"
	UNIT_JAX_SCREENSHOT=docs/images/page.png $(BIN)/python -m pytest -n0 tests/page/test_browser.py

# The docs site with the API's reference, in runs/site; a broken link is an error.
docs: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo-fresh:
	rm -rf $(DEMO)
	$(MAKE) demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL)

# The suite, with all arrays checked against their annotations (tests/annotations.py).
check-types: $(VENV)/.installed
	UNIT_JAX_CHECK_TYPES=1 $(BIN)/python -m pytest $(PARALLEL)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow $(PARALLEL)

# Kills a tiny run 30 times at random moments of all its phases; what it ends with is compared.
chaos: $(VENV)/.installed
	$(BIN)/python -m tests.chaos --kills 30

# Plants faults one after the other and shows which test sees each.
mutants: $(VENV)/.installed
	$(BIN)/python -m tests.mutants

# What of the package the suite runs; a page in runs/coverage.
coverage: $(VENV)/.installed
	$(BIN)/pip install -q "coverage>=7"
	$(BIN)/python -m coverage run --source=unit_jax -m pytest -n0
	$(BIN)/python -m coverage report --skip-covered --sort=cover
	$(BIN)/python -m coverage html -d runs/coverage

# Comparison with the reference's numbers: make parity PARITY_DIR=folder-of-npz-files
parity: parity-files $(VENV)/.installed
	$(BIN)/python tools/check_parity.py $(PARITY_DIR)/*.npz

parity-files:
	@ls $(PARITY_DIR)/*.npz >/dev/null 2>&1 || { \
	  echo "'$(PARITY_DIR)' holds no .npz files; give the folder of the reference's numbers:"; \
	  echo "make parity PARITY_DIR=FOLDER"; exit 2; } >&2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)

# The exact versions that `make demo` and `make test` install.
lock:
	rm -rf .venv.lock && $(PYTHON) -m venv .venv.lock
	.venv.lock/bin/pip install -q -r requirements.txt "pytest>=8" "pytest-xdist>=3.7" "hypothesis>=6" "scikit-learn>=1.5" "ruff>=0.9" "ty>=0.0.108" "beartype>=0.22" "setuptools>=77" "starlette>=0.40" "uvicorn>=0.30" "python-multipart>=0.0.18"
	.venv.lock/bin/pip freeze --all --exclude pip --exclude-editable > requirements.lock
	rm -rf .venv.lock

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) runs
