"""docs/SCALE.md says what its script computes, and the script counts what the library keeps and PyTorch computes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from sharedllm import SharedConfig, SharedLLM
from sharedllm.branch import WIDER
from sharedllm.methods import create
from sharedllm.methods.encoder_decoder import CrossConfig, EncoderDecoder
from sharedllm.methods.estimate import cache_bytes
from sharedllm.projection import MERGED
from sharedllm.prompts import Prompt
from sharedllm.relevance import ASKING_TOKENS
from tests.conftest import byte_tokenizer, tiny_model
from tests.products import counter

ROOT = Path(__file__).parent.parent
CONFIG = SharedConfig(
    injected_layers=3, chunk_length=128, tree_depth=2, slots_per_leaf=4, fine_chunks=1, read_chunks=2, rank=2,
    stored_bits=4, search_layer=1, search_words=0.1, quoted_tokens=16,
)  # fmt: skip
TOKENS = 5 * 128 + 40


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def llm():
    # The attention of which is matrix products over all pairs.
    model = tiny_model(attn_implementation="eager", max_position_embeddings=128)
    return SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=byte_tokenizer())


def shape(llm):
    from scale_counts import Shape

    return Shape("tiny", llm.model.config, llm.dtype)


def counted(work) -> tuple[int, int]:
    """Operations that PyTorch counts: of weights, and of attention."""
    with counter() as seen, torch.no_grad():
        work()
    by = {str(name): count for name, count in seen.get_flop_counts()["Global"].items()}
    attention = by.pop("aten.bmm", 0) + by.pop("aten.baddbmm", 0)
    assert set(by) <= {"aten.mm", "aten.addmm"}, by
    return sum(by.values()), attention


def ids(tokens: int) -> torch.Tensor:
    return torch.arange(tokens, dtype=torch.int32) * 7 % 256


def test_weights_are_those_of_the_model(llm):
    tiny = shape(llm)
    matrices = sum(p.numel() for p in llm.model.model.layers.parameters() if p.ndim > 1)
    assert tiny.layers * tiny.layer_weights == matrices
    assert tiny.head_weights == llm.model.lm_head.weight.numel()


def test_operations_are_those_that_torch_counts(llm):
    from scale_counts import chunked, cost, forward

    tiny, n = shape(llm), TOKENS
    weights, attention = counted(lambda: llm.model(ids(n)[None].long(), logits_to_keep=1, use_cache=False))
    assert weights + attention == forward(tiny, n, n * n) + 2 * tiny.head_weights
    full = cost("full", tiny, n, CONFIG, 32, 8).read
    assert weights + attention - full == tiny.layers * tiny.attention(n * (n - 1) // 2), "pairs that a mask rules out"

    whole = 5 * CONFIG.chunk_length  # the ragged chunk counts as a chunk of its own length
    weights, attention = counted(lambda: llm.reader.encode_rows(ids(whole).view(5, -1)))
    C, below = CONFIG.chunk_length, CONFIG.injected_layers - 1
    top = tiny.query_weights + 2 * tiny.key_weights
    assert weights == 2 * (below * tiny.layer_weights + top) * whole
    assert attention == below * tiny.attention(5 * C * C)
    read = cost("shared", tiny, whole, CONFIG, 32, 8).read
    assert read == weights + attention // C * (C + 1) // 2
    alone = cost("shared", tiny, whole, replace(CONFIG, injected_layers=1, search_layer=0), 32, 8).read
    assert alone == chunked(tiny, whole, C, 1)

    method = EncoderDecoder(llm, 32)
    c = CrossConfig().chunk_length
    weights, attention = counted(lambda: method.prepare(ids(2 * c)))
    assert cost("encoder-decoder", tiny, 2 * c, CONFIG, 32, 8).read == weights + attention // c * (c + 1) // 2


def test_operations_of_a_new_token_are_those_that_torch_counts(llm):
    from scale_counts import cost
    from scale_counts import slots as slots_of

    tiny, context = shape(llm), llm.read(ids(5 * 128))
    memory = llm.recall(context, ids(8)[None].long())
    slots = memory.keys[0].shape[2] - 1
    assert slots == slots_of(5 * 128, CONFIG)
    quoted, cache = CONFIG.quoted_tokens, DynamicCache()
    with llm.injection.reading(memory), torch.no_grad():
        llm.model(ids(quoted)[None].long(), past_key_values=cache)
        llm.model(ids(1)[None].long(), use_cache=False)  # projections and their changes become one
        weights, attention = counted(lambda: llm.model(ids(1)[None].long(), past_key_values=cache))
    found = cost("shared", tiny, 5 * 128, CONFIG, 32, 1)
    seen = tiny.layers * tiny.attention(1 + quoted)
    assert attention == seen + CONFIG.injected_layers * tiny.attention(1 + slots, WIDER)
    assert found.token == weights + attention
    held = sum(x[:, :, 1:].nbytes for x in (*memory.keys, *memory.values))  # the null slot is no text
    assert found.attended == held + cache_bytes(tiny, quoted)


def test_operations_of_a_question_with_its_quotes_are_those_that_torch_counts(monkeypatch, llm):
    import scale_counts

    monkeypatch.setattr(scale_counts, "ASKING_TOKENS", 8)
    tiny, context, n = shape(llm), llm.read(ids(5 * 128)), 8 + CONFIG.quoted_tokens
    with llm.injection.reading(llm.recall(context, ids(8)[None].long())), torch.no_grad():
        llm.model(ids(1)[None].long(), use_cache=False)
        weights, attention = counted(lambda: llm.model(ids(n)[None].long(), logits_to_keep=1, use_cache=False))
    ruled_out = tiny.layers * tiny.attention(n * (n - 1) // 2)
    assert scale_counts.taking_in(tiny, 5 * 128, CONFIG) == weights + attention - ruled_out


def test_words_are_looked_for_in_all_token_ids(llm):
    from scale_counts import cost

    with_words, without = (
        cost("shared", shape(llm), TOKENS, replace(CONFIG, search_words=words), 32, 8).search_bytes
        for words in (0.1, 0.0)
    )
    assert with_words - without == ASKING_TOKENS * llm.read(ids(TOKENS)).ids.nbytes


def test_a_large_projection_and_its_change_of_low_rank_are_two(monkeypatch, llm):
    import scale_counts

    tiny = shape(llm)
    merged = scale_counts.cost("shared", tiny, 5 * 128, CONFIG, 32, 1)
    monkeypatch.setattr(scale_counts, "MERGED", tiny.query_weights - 1)
    apart = scale_counts.cost("shared", tiny, 5 * 128, CONFIG, 32, 1)
    ranked = sum(p.numel() for name, p in llm.injection.named_parameters() if name.endswith((".up", ".down")))
    assert tiny.query_weights <= MERGED
    assert (apart.token - merged.token, apart.token_bytes - merged.token_bytes) == (
        2 * ranked,
        ranked * tiny.dtype.itemsize,
    )


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("tokens", [5 * 128, TOKENS])
def test_kept_and_attended_bytes_are_those_of_the_library(bits, tokens):
    from scale_counts import memory_bytes, stored_bytes, wider_bytes

    config = replace(CONFIG, stored_bits=bits)
    model = tiny_model(max_position_embeddings=128)
    llm = SharedLLM.from_pretrained(model, adapter="none", config=config, tokenizer=byte_tokenizer())
    method, prompt = create("shared", llm, 32), Prompt(llm.tokenizer, "Who?")
    past = method.prepare(ids(tokens))
    assert method.kept_bytes(past) == stored_bytes(shape(llm), tokens, config)
    if tokens % 128 == 0:
        between = len(prompt.with_text(ids(1))) - 1 - len(prompt.alone())  # the quotes and the question
        slots = memory_bytes(shape(llm), tokens, config) + wider_bytes(shape(llm), tokens, config)
        counted = slots + cache_bytes(llm, between)
        assert method.attended_bytes(past, prompt, 4) == counted


def test_bytes_of_the_other_methods_are_those_of_the_library(llm):
    from scale_counts import cost

    tiny = shape(llm)
    cross = EncoderDecoder(llm, 32)
    assert cross.kept_bytes(cross.prepare(ids(TOKENS))) == cost("encoder-decoder", tiny, TOKENS, CONFIG, 32, 8).kept
    rolling = create("streaming", llm, 32)
    read = rolling.prepare(ids(TOKENS))
    kept = rolling.kept_bytes(read) - read.ids.nbytes
    last = kept // (rolling.sinks + rolling.window - 1)  # the newest token makes room for the next one
    assert kept + last == cost("streaming", tiny, TOKENS, CONFIG, 32, 8).kept


def test_a_library_is_bound_by_its_slowest_part():
    from scale_library import Library, Parts, simulate

    library = Library(documents=100, tokens=10, text_bytes=4, network=1000.0, storage=4000.0)
    slow, fast = Parts(read=10.0, store=360, weights=0), Parts(read=0.1, store=360, weights=0)
    found = simulate(library, slow, 8)
    assert found["seconds"] == pytest.approx(13 * (10 + 0.4)) and found["bound_by"] == "reading"
    assert found["speed_up"] == pytest.approx(100 / 13)
    found = simulate(library, fast, 64)
    assert found["seconds"] == pytest.approx(100 * 400 / 4000) and found["bound_by"] == "storage"
    assert simulate(library, fast, 2)["bound_by"] == "network"
    assert found["storage_full_from_workers"] == pytest.approx(5)
    assert simulate(library, replace(fast, weights=10**6), 64)["bound_by"] == "start"


def test_the_page_and_the_results_say_what_the_script_computes():
    import scale
    from scale_tables import blocks

    rows = [json.loads(line) for line in scale.RESULTS.read_text(encoding="utf-8").splitlines()]
    assert json.loads(json.dumps(scale.computed())) == rows, "run python tools/scale.py"
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.filled(page, blocks(rows)) == page, "run python tools/scale.py"
    assert not set(blocks(rows)) ^ set(re.findall(r"<!-- ([\w-]+) -->", page)), "a block without a table"
    with pytest.raises(ValueError, match="no marks"):
        scale.filled(page, {"absent": ""})


def test_measured_bytes_are_predicted():
    import scale

    checks = [row for row in scale.computed() if row["task"] == "scale-check" and row["unit"] == "bytes"]
    checks = [row for row in checks if row["method"] != "streaming"]  # whose question takes the place of text
    assert checks and all(row["ratio"] == pytest.approx(1, abs=0.02) for row in checks), checks


def test_passages_that_were_scored_once_are_compared_once_and_told_apart(monkeypatch):
    """Of several lengths `shared` reads the longest alone and `truncate` the same window; other windows are other measurements."""
    import scale

    about = {"metric": "nll", "dtype": "bfloat16", "targets": 256, "samples": 2, "seconds": 4.0, "sources": ["a", "b"]}
    about |= {"starts": [1, 2], **SharedConfig.fitting(30).to_dict()}
    found = [
        {**about, "method": method, "window": window, "length": length}
        for method in ("shared", "truncate")
        for window in (1024, 7168)
        for length in (16384, 32768)
    ]
    full = {**about, "method": "full", "window": 1024, "length": 8192}
    monkeypatch.setattr(scale, "rows_of", lambda name: [*found, full, {**full, "targets": 512}])
    compared = [check[:3] for check in scale._passage_checks(scale.Rates(1e9, None))]
    said = "the last 256 of a passage scored, window"
    assert compared == [
        *((f"{said} {window}", method, 32768) for method in ("shared", "truncate") for window in ("1,024", "7,168")),
        *((f"the last {n} of a passage scored, window 8,192", "full", 8192) for n in (256, 512)),
    ]


def test_rows_of_bench_are_compared(monkeypatch):
    import scale

    shared = SharedConfig.fitting(30).to_dict()
    about = {"model": "SmolLM2-135M-Instruct", "device": "cpu", "dtype": "bfloat16", "threads": 2, "window": 1024}
    about |= {"method": "shared", "length": 16384, "value": 1.0, **shared}
    time = {"metric": "seconds_to_first_token", "read_seconds": 16.0, "per_token_seconds": 0.2}
    rounds = {"per_token_alone_seconds": [0.09, 0.1, 0.3]}
    memory = {"metric": "working_peak_bytes", "kept_bytes": 85131392, "attended_bytes": 45711360}
    real = scale.rows_of
    shorter = {**about, **time, "rounds": rounds, "length": 8192, "read_seconds": 10.0}
    bench = [
        {**about, **time, "rounds": rounds},
        {**about, **memory},
        {**about, "method": "truncate", **memory},
        shorter,
    ]
    monkeypatch.setattr(scale, "rows_of", lambda name: bench if name == "bench.jsonl" else real(name))
    found = {row["what"]: row for row in scale.computed() if row["task"] == "scale-check"}
    assert found["bench: kept"]["ratio"] == found["bench: attended"]["ratio"] == 1
    assert (found["bench: read"]["predicted"], found["bench: read"]["measured"]) == (pytest.approx(8.0, rel=0.01), 10.0)
    assert 0.1 < found["bench: a new token"]["predicted"] < 0.2, "the plain model's token and a little more"


def test_the_figure_is_small_and_keeps_its_text(tmp_path):
    import scale
    import scale_figure

    scale_figure.save([row for row in scale.computed() if row["task"] == "scale"], tmp_path / "scale.svg")
    for file in (tmp_path / "scale.svg", scale.FIGURE):
        drawn = file.read_text(encoding="utf-8")
        assert len(drawn.encode()) < 200_000
        assert all(f">{word}<" in drawn for word in ("10M", "operations to read", "SmolLM2-135M"))
