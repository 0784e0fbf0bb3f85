# One command for each thing that a contributor does. Each creates what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LAB    := $(VENV)/.lab
READY  := $(VENV)/.ready
PEERS  := $(VENV)/.peers
PIP    := $(BIN)/pip --quiet --disable-pip-version-check

.PHONY: bench constraints demo docs gpu study test lint clean

# What a demo needs, and no more: the first run of a newcomer waits for this.
$(LAB): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[lab]'
	touch $(LAB)

$(READY): $(LAB)
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps --upgrade --target .peers sgd-sai==1.0.3
	touch $(READY)

# Apart from what a demo needs: where torchao is installed, transformers imports it, with warnings.
$(PEERS): $(READY)
	$(PIP) install -c constraints.txt -e '.[peers]'
	touch $(PEERS)

constraints: $(PEERS)  ## pin every version that is installed here; after a change of dependencies
	$(BIN)/pip freeze --exclude-editable > $(VENV)/installed.txt
	{ sed '/^$$/q' constraints.txt; \
	  sed -E '/^(torch|triton)==/d; s/$$/ ; python_version >= "3.11"/' $(VENV)/installed.txt; \
	} > constraints.new && mv constraints.new constraints.txt

demo: $(LAB)  ## train three real models with three optimizers and write a report; or go on with it
	$(BIN)/sgd-sai compare --task gpt,vit,cnn --out runs/demo --resume

# With RECORD=1 a measurement replaces what is committed: records, from which README and docs are made, or the
# learning rates that come with the package.
RECORDS := $(if $(RECORD),benchmarks/results,runs)
TUNED   := $(if $(RECORD),src/sgd_sai/lab/tuned.jsonl,runs/tuned.jsonl)

STUDIED := --task all --optimizer sgd,adamw,adam-mini,sgd-sai --threads 1
study: $(READY)  ## tune what is not tuned yet, then five tasks, four optimizers, five seeds; or go on with it
	mkdir -p runs && test -e $(TUNED) || cp src/sgd_sai/lab/tuned.jsonl $(TUNED)
	$(BIN)/sgd-sai tune $(STUDIED) --missing --tuned $(TUNED) --out runs/study-tune --resume
	$(BIN)/sgd-sai compare $(STUDIED) --tuned $(TUNED) --seeds 0,1,2,3,4 --jobs 2 --out runs/study --resume

test: $(READY) $(PEERS)  ## the whole test-suite, in parallel
	$(BIN)/pytest

bench: $(READY) $(PEERS)  ## time a step next to the memory-bandwidth floor; on a quiet machine
	$(BIN)/python benchmarks/run.py --out $(RECORDS)/speed

gpu:  ## the proof on a GPU, with the Python that is there: the machine may have no network
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu --out $(RECORDS)/gpu $(ARGS)

docs: $(READY)  ## the documentation as a site, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY)  ## style and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .peers build dist runs site
