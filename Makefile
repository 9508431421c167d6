# `make help` lists what there is. Everything is installed into $(VENV), nothing outside of it is touched.
PYTHON ?= python3
VENV ?= .venv
OUT ?= build

BIN := $(VENV)/bin
BENCHMARK := .venv-benchmark
DEVICE := .venv-device
# A Python whose torch is a CUDA build, with the libraries of tests/device/requirements.txt; arguments of
# tests/device/figures.py: --write, --print, beginnings of cases' names.
DEVICE_PYTHON ?= $(DEVICE)/bin/python
DEVICE_ARGUMENTS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
MANIFEST := pyproject.toml constraints.txt
# A process a core, each with whole files, whose tests share what they have computed.
PARALLEL := -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help profile test test-long test-torch test-browser test-device lint docs benchmark clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

profile: $(VENV)/.installed ## profile the digits network, write the report as JSON, Markdown and HTML
	@mkdir -p $(OUT)
	$(BIN)/memback profile digits -o $(OUT)/digits.json -o $(OUT)/digits.md -o $(OUT)/digits.html --force
	@printf 'The report: %s\n' "$(OUT)/digits.json" "$(OUT)/digits.md" "$(OUT)/digits.html"

test: $(VENV)/.installed-test ## run the tests that need neither PyTorch, nor a browser, nor minutes
	$(BIN)/python -m pytest $(PARALLEL) -m "not torch and not browser and not long"

test-long: $(VENV)/.installed-test ## run the tests that take minutes: every profile under plans for six budgets
	$(BIN)/python -m pytest $(PARALLEL) -m long

test-torch: $(VENV)/.installed-torch ## install PyTorch and transformers, and run the comparisons with it
	$(BIN)/python -m pytest $(PARALLEL) -m torch

test-browser: $(VENV)/.installed-browser ## open reports in Chromium: numbers, hover, accessibility
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  echo "These tests need Chromium and its driver; on Debian: apt-get install chromium chromium-driver" >&2; exit 1; }
	$(BIN)/python -m pytest -m browser

test-device: $(if $(filter $(DEVICE)/%,$(DEVICE_PYTHON)),$(DEVICE)/.installed) ## what a step takes on a GPU, by PyTorch's own code, without the GPU
	@command -v "$${CC:-cc}" >/dev/null && command -v nm >/dev/null || { \
	  echo "These tests need a C compiler and nm; on Debian: apt-get install gcc binutils" >&2; exit 1; }
	$(DEVICE_PYTHON) tests/device/stub/launch.py $(DEVICE_PYTHON) -m tests.device.figures $(DEVICE_ARGUMENTS)
	$(DEVICE_PYTHON) -m tests.device.predictions $(filter-out --print,$(DEVICE_ARGUMENTS))
	$(DEVICE_PYTHON) -m tests.device.page $(filter --write,$(DEVICE_ARGUMENTS))
	$(DEVICE_PYTHON) tests/device/stub/launch.py $(DEVICE_PYTHON) -m tests.device.step_figures $(filter --write,$(DEVICE_ARGUMENTS))
	$(DEVICE_PYTHON) tests/device/stub/launch.py $(DEVICE_PYTHON) -m tests.device.plan_figures $(filter --write,$(DEVICE_ARGUMENTS))
	$(DEVICE_PYTHON) tests/device/stub/launch.py $(DEVICE_PYTHON) -m tests.device.traces $(filter --write,$(DEVICE_ARGUMENTS))
	$(DEVICE_PYTHON) tests/device/stub/launch.py $(DEVICE_PYTHON) -m tests.device.fuzz

lint: $(VENV)/.installed-test ## ruff, its formatter and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## run the documentation's code and build the site, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(OUT)/docs
	@printf 'The documentation: %s\n' "$(OUT)/docs/index.html"

benchmark: $(BENCHMARK)/.installed ## compare with other engines, write benchmarks/RESULTS.md
	$(BENCHMARK)/bin/python -m benchmarks.page

clean: ## remove the environments, caches and what was built
	rm -rf $(VENV) $(BENCHMARK) $(DEVICE) $(OUT) dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# A stamp a set of dependencies: each is newer than the files that it was installed from.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "memback needs Python 3.11 or newer; '$(PYTHON)' is not." \
	    "Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(MANIFEST)
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created $(MANIFEST)
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-browser: $(VENV)/.installed-test
	$(PIP) -e '.[test,browser]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.created $(MANIFEST)
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-torch: $(VENV)/.installed-test
	$(PIP) torch==2.13.0 -e '.[test,hf]'
	@touch $@

# The peers are in an environment of their own, so that nothing of memback's can come to depend on them.
$(BENCHMARK)/.installed: $(MANIFEST) benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCHMARK)
	$(BENCHMARK)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	  -r benchmarks/requirements.txt -e '.[fast]'
	@touch $@

# A CUDA build of PyTorch, and the libraries whose models the cases are.
$(DEVICE)/.installed: $(MANIFEST) tests/device/requirements.txt
	$(PYTHON) -m venv $(DEVICE)
	$(DEVICE)/bin/python -m pip --disable-pip-version-check install --quiet -r tests/device/requirements.txt -e .
	@touch $@
