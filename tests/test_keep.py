"""Spans kept from compression: taken in whole by every question, however the text came to be a context."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from sharedllm import Context, Library, UsageError, WorkError, naive
from sharedllm.keep import merged, token_spans, untagged
from sharedllm.manifest import VERSION
from tests.conftest import CONFIG, tokens
from tests.contexts import assert_one_sentence, assert_same_chunks, chunks_of
from tests.test_naive import split

KEEP = [(3, 6), (30, 34), (85, 87)]  # in the first chunk, over a border, in the ragged end
TEXT = tokens(16 * 5 + 7, 2)
CONFIGS = {
    "default": CONFIG,
    "by last token": dataclasses.replace(CONFIG, search_by="last"),
    "one chunk read": dataclasses.replace(CONFIG, read_chunks=1, positions="chunk+inner"),
    "one fine chunk of two": dataclasses.replace(CONFIG, fine_chunks=1, read_chunks=2, positions="sequence"),
    "uneven, with a prior": dataclasses.replace(CONFIG, chunk_length=13, slots_per_leaf=3, search_prior=3.0),
}


# Which tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_are_the_naive_twins(make, name):
    llm = make(CONFIGS[name])
    windows, texts = [tokens(n, n) for n in (7, 4)], [TEXT, tokens(70, 3)]
    keeps = [KEEP, [(0, 1), (40, 70)]]
    ids, mask = torch.full((2, 7), 258), torch.zeros(2, 7, dtype=torch.long)
    for b, window in enumerate(windows):
        ids[b, 7 - len(window) :], mask[b, 7 - len(window) :] = window, 1
    for search in ("query", "later"):
        grads, outputs = [], []
        for fast in (False, True):
            llm.injection.zero_grad()
            if fast:
                contexts = [llm.read(text, keep=keep) for text, keep in zip(texts, keeps, strict=True)]
                logits = llm(ids, context=contexts, attention_mask=mask, search=search).logits
                out = [logits[b, 7 - len(window) :] for b, window in enumerate(windows)]
            else:
                out = [
                    naive.forward(llm, w.tolist(), split(t, llm.config.chunk_length), search, keep)
                    for w, t, keep in zip(windows, texts, keeps, strict=True)
                ]
            outputs.append(torch.cat([o.detach() for o in out]))
            sum((o * torch.linspace(-1, 1, o.shape[-1])).sum() for o in out).backward()
            grads.append({n: p.grad.clone() for n, p in llm.injection.named_parameters()})
        scale = outputs[0].abs().max()
        torch.testing.assert_close(outputs[1] / scale, outputs[0] / scale, atol=1e-5, rtol=1e-5)
        for n, slow in grads[0].items():
            assert torch.allclose(grads[1][n] / slow.abs().max(), slow / slow.abs().max(), atol=5e-5), n


def test_every_kept_token_is_a_slot_whatever_is_asked(make):
    llm = make(dataclasses.replace(CONFIG, read_chunks=1))
    context = llm.read(TEXT, keep=KEEP)
    chunks = chunks_of(context)
    for seed in range(5):
        found = llm.recall(context, tokens(6, seed)[None]).values[0][0, :, 1:, :8]  # [K, S, D] without the null slot
        for token in (t for start, end in KEEP for t in range(start, end)):
            wanted = chunks[token // 16].values[0, 0, :, token % 16]
            assert (found == wanted[:, None]).all(2).all(0).any(), token


def test_a_text_that_is_kept_whole_is_taken_in_whole(make):
    llm = make()
    context = llm.read(TEXT, keep=[(0, len(TEXT))])
    assert context.slots == llm.recall(context, tokens(5)[None]).mask.shape[1] - 1 == len(TEXT)
    fine = make(dataclasses.replace(CONFIG, fine_chunks=6))
    window = tokens(5)[None]
    assert torch.equal(llm(window, context=context).logits, fine(window, context=fine.read(TEXT)).logits)


def test_keeping_nothing_changes_nothing(make):
    llm = make()
    for keep in (None, [], [(5, 5)]):
        assert_same_chunks(llm.read(TEXT, keep=keep), llm.read(TEXT))
        assert llm.read(TEXT, keep=keep).keep == []


# Ways to a context ----------------------------------------------------------------------------


@pytest.fixture(params=[0, 1], ids=["candidates stored", "all stored"])
def llm(make, request):
    return make(dataclasses.replace(CONFIG, fine_chunks=request.param, read_chunks=2))


def same(llm, a, b):
    assert_same_chunks(a, b)
    assert (a.keep, a.slots) == (b.keep, b.slots) and torch.equal(a.ids, b.ids)
    window = tokens(6, 4)[None]
    assert torch.equal(llm(window, context=a).logits, llm(window, context=b).logits)


def test_reading_on_gives_what_reading_the_whole_would_have(llm):
    for cut in (1, 31, 80, 86):
        context = llm.reader.new_context()
        context.append(TEXT[:cut], keep=[(a, min(b, cut)) for a, b in KEEP if a < cut])
        context.append(TEXT[cut:], keep=[(max(a, cut) - cut, b - cut) for a, b in KEEP if b > cut])
        llm.reader.encode(context)
        same(llm, context, llm.read(TEXT, keep=KEEP))


def test_parts_and_compositions_keep_their_spans(llm):
    context = llm.read(TEXT, keep=KEEP)
    assert context.first(2).keep == [(3, 6), (30, 32)] and context.without_first(2).keep == [(0, 2), (53, 55)]
    same(llm, Context.compose([context.first(2), context.without_first(2)]), context)
    again = Context.compose([context, llm.read(tokens(20, 9), keep=[(2, 4)]), context.first(1)])
    assert again.keep == [*KEEP, (89, 91), (110, 113)]
    again.append(tokens(5, 7), keep=[(0, 2)])
    assert (
        again.keep[-1] == (123, 125)
        and llm.recall(again, tokens(5)[None], search="later").mask.shape[1] - 1 == again.slots
    )


def test_a_saved_context_keeps_its_spans(llm, tmp_path):
    context = llm.read(TEXT, keep=KEEP)
    context.save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    same(llm, loaded, context)
    loaded.append(tokens(30, 5), keep=[(29, 30)])
    same(llm, loaded, llm.read(torch.cat([TEXT, tokens(30, 5)]), keep=[*KEEP, (116, 117)]))
    llm.read(tokens(20, 1), keep=[(1, 2)]).save(tmp_path / "short")
    assert Context.load(tmp_path / "short", llm).keep == [(1, 2)]


def test_a_library_keeps_spans_by_document(llm, tmp_path):
    library = Library(tmp_path / "lib", llm)
    planned = library.plan({"a": TEXT, "b": TEXT}, keep={"a": KEEP})
    library.update({"a": TEXT, "b": TEXT}, keep={"a": KEEP})
    same(llm, library.context(["a"]), llm.read(TEXT, keep=KEEP))
    same(llm, library.context(["b"]), llm.read(TEXT))
    assert library.context().keep == KEEP
    assert planned.bytes <= library.nbytes and library.plan({"a": TEXT, "b": TEXT}, keep={"b": KEEP}).new_tokens == 0
    library.add("a", TEXT)
    assert library.context().keep == []
    same(llm, library.context(["a"]), llm.read(TEXT))


def test_spans_of_packed_numbers_are_near_the_plain_ones(make):
    for fine in (0, 1):
        config = dataclasses.replace(CONFIG, fine_chunks=fine)
        plain = make(config).read(TEXT, keep=KEEP)
        for bits, near in ((8, 0.02), (4, 0.3)):
            llm = make(dataclasses.replace(config, stored_bits=bits))
            context = llm.read(TEXT, keep=KEEP)
            assert context.nbytes < plain.nbytes and context.slots == plain.slots
            a, b = (x.blocks[0].values_of(1) for x in (context, plain))
            assert (a - b).abs().max() < near * b.abs().max()


def test_the_format_before_spans_is_read_and_gone_on_with(llm, tmp_path):
    llm.read(TEXT).save(tmp_path / "c")
    file = tmp_path / "c" / "context.json"
    about = json.loads(file.read_text())
    del about["documents"]["text"]["keep"]
    file.write_text(json.dumps({**about, "version": 3}))
    same(llm, Context.load(tmp_path / "c", llm), llm.read(TEXT))
    Library(tmp_path / "c", llm).add("more", tokens(40, 3), keep=[(1, 2)])
    assert json.loads(file.read_text())["version"] == VERSION
    assert Context.load(tmp_path / "c", llm).keep == [(88, 89)]


def test_spans_that_do_not_fit_the_stored_chunks_are_refused(make, tmp_path):
    llm = make()
    llm.read(TEXT).save(tmp_path / "c")
    file = tmp_path / "c" / "context.json"
    for keep in ([[3, 6]], [[80, 500]], [[-4, 2]], [3], "tags"):
        about = json.loads(file.read_text())
        about["documents"]["text"]["keep"] = keep
        file.write_text(json.dumps(about))
        with pytest.raises(WorkError, match="broken") as error:
            Context.load(tmp_path / "c", llm)
        assert_one_sentence(error)


# Text and tags --------------------------------------------------------------------------------


def test_tags_and_ranges_of_characters_name_tokens(make):
    llm = make()
    tagged = f"<keep>The</keep> key is <keep>ä{'x' * 60}</keep> 1<keep>2</keep>"
    plain = f"The key is ä{'x' * 60} 12"
    context = llm.read(tagged, keep="tags")
    assert torch.equal(context.ids, llm.read(plain).ids)
    assert context.keep == [(0, 3), (11, 73), (75, 76)]  # bytes: ä has two
    assert llm.read(plain, keep=[(0, 3), (11, 72), (74, 75)]).keep == context.keep
    assert llm.read(tagged).tokens == len(tagged.encode())  # not asked for: text as any other


def test_a_token_that_holds_a_kept_character_is_kept():
    offsets = [(0, 4), (4, 5), (5, 5), (5, 9), (9, 12)]
    assert token_spans(offsets, [(2, 4)]) == [(0, 1)]
    assert token_spans(offsets, [(3, 6), (11, 12)]) == [(0, 5)]
    assert token_spans(offsets, [(4, 5)]) == [(1, 2)]
    assert token_spans([], []) == []


def test_spans_are_ordered_and_joined():
    assert merged([(5, 7), (1, 3), (3, 4), (6, 9), (8, 8)]) == [(1, 4), (5, 9)]
    assert untagged("a<keep>b</keep><keep>c</keep>d") == ("abcd", [(1, 3)])


@pytest.mark.parametrize(
    ("text", "keep", "says"),
    [
        ("a<keep>b<keep>c</keep>", "tags", "inside another"),
        ("a</keep>b", "tags", "no <keep> before"),
        ("a<keep>b", "tags", "no </keep> behind"),
        ("abc", [(1, 9)], "between 0 and 3"),
        ("abc", [(2, 1)], "between 0 and 3"),
        ("abc", [1], "between 0 and 3"),
        ([1, 2, 3], [(0, 4)], "tokens, between 0 and 3"),
        ([1, 2, 3], "tags", "ranges of tokens"),
    ],
)
def test_mistakes(make, text, keep, says):
    with pytest.raises(UsageError, match=says) as error:
        make().read(text, keep=keep)
    assert_one_sentence(error)
