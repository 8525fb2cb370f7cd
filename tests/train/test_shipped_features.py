"""What the recipe of the shipped adapter uses, all of it in one run: it goes on as if nothing had stopped it."""

from __future__ import annotations

import dataclasses
import json

from sharedllm import SharedLLM
from sharedllm.train.loop import Trainer
from sharedllm.train.recipe import read_recipe
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.train.test_loop import assert_goes_on_as_unbroken, recipe, write_data

OWN = ("output", "data", "start", "steps", "warmup_steps", "device", "dtype", "model", "config")
USED = (
    "keep_start",
    "reuse",
    "needles",
    "pairs",
    "hops",
    "questions",
    "quoted",
    "warm",
    "long_windows",
    "recompute_from",
)
SMALL = dict(
    window_tokens=8, warm_tokens=8, long_window_tokens=40, recompute_from=30, needle_windows=2, windows=2, context_chunks=[24, 28],
    checkpoint_every=5, validate_every=0, learning_rate=3e-2, gate_learning_rate=1e-1,
)  # fmt: skip
OFTEN = dict(needles=0.4, questions=0.1, warm=0.5, long_windows=0.5)  # so that six steps have all kinds
SIZES = {f: getattr(CONFIG, f) for f in ("injected_layers", "chunk_length", "tree_depth", "slots_per_leaf")}


def test_a_run_with_all_that_the_shipped_recipe_uses_goes_on_as_unbroken(tmp_path):
    shipped, data = read_recipe("default"), write_data(tmp_path)
    config = dataclasses.replace(shipped.config, **SIZES, quoted_tokens=8, rank=2, read_chunks=4)
    settings = {f.name: getattr(shipped, f.name) for f in dataclasses.fields(shipped) if f.name not in OWN}
    settings |= {**SMALL, **OFTEN, "start": str(tmp_path / "first/adapter"), "seed": 3}

    def start(folder, changes=settings) -> Trainer:
        model = tiny_model(max_position_embeddings=2048)
        llm = SharedLLM.from_pretrained(model, adapter="none", config=config, tokenizer=byte_tokenizer())
        return Trainer(recipe(data, folder, config=config, **changes), llm)

    start(tmp_path / "first", {"steps": 1}).train()
    assert_goes_on_as_unbroken(start, tmp_path, until=5, found=5)  # amid steps that share a context
    rows = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert {kind for row in rows for kind in row["kinds"]} >= {"needles", "warm window", "long window"}
    assert all(getattr(shipped, name) for name in USED) and (config.stored_bits, config.fine_chunks) == (4, 1)
    written = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert written[0] == written[1]
