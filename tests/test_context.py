"""A context: what is stored, appending, saving and loading, and what broken files say."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import sharedllm.context
from sharedllm import Context, SharedConfig, SharedLLM, UsageError, WorkError
from sharedllm.encoder import Encoded
from sharedllm.memory import find, gather_slots
from sharedllm.tree import candidate_tokens
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model, tokens
from tests.test_generate import counted

WINDOW = tokens(6, 1)[None]


@pytest.fixture
def llm(make):
    return make()


def encoded(llm, ids, every_token=False):
    """A context of `ids`, encoded even where it would fit the window."""
    context = llm.reader.new_context()
    context.ids = ids.int()
    llm.reader.encode(context, every_token=every_token)
    return context


def chunks_of(context) -> list[Encoded]:
    return [block[i : i + 1] for block in context.blocks for i in range(len(block.lengths))]


def same(a: Encoded, b: Encoded) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in Encoded.__dataclass_fields__)


def assert_same_chunks(a, b):
    assert a.chunks == b.chunks
    for i, (x, y) in enumerate(zip(chunks_of(a), chunks_of(b), strict=True)):
        assert same(x, y), f"chunk {i} differs"


def files(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def assert_one_sentence(error):
    """A message for people: short, one line, and it ends as a sentence does."""
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and text[-1] in ".?", text


# Counts -------------------------------------------------------------------------------------


def test_counts_of_tokens_chunks_slots_and_bytes(llm):
    context = llm.read(tokens(16 * 5 + 7))
    assert (context.tokens, context.encoded_tokens, context.chunks) == (87, 87, 6)
    # A chunk of 16, depth 2: leaves of 8, 4, 4 with 2 slots each; of 7 (3 | 4): 3, 2, 2.
    assert context.slots == 5 * 6 + 6
    assert context.slots == llm.recall(context, WINDOW, search="later").mask.shape[1] - 1
    M, K, D = 3, 2, 8
    expected = 4 * 87
    for n in [16] * 5 + [7]:
        stored = len(candidate_tokens(n, 2, 2))
        expected += 8 + 8 * stored + 2 * 4 * M * K * D * stored
    assert context.nbytes == expected


def test_a_text_that_fits_keeps_its_token_ids_alone(llm):
    context = llm.read(tokens(64))
    assert (context.tokens, context.chunks, context.slots, context.nbytes) == (64, 0, 0, 4 * 64)
    assert torch.equal(context.ids, tokens(64).int())
    assert llm.read(tokens(65)).chunks == 5


def test_an_empty_context_counts_nothing(llm):
    context = llm.reader.new_context()
    assert (context.tokens, context.chunks, context.slots, context.nbytes) == (0, 0, 0, 0)


def test_stored_bytes_a_full_chunk_are_constant(llm):
    sizes = {llm.read(tokens(16 * n)).nbytes / n for n in (5, 8, 20, 70)}
    assert len(sizes) == 1


def test_a_quarter_of_the_tokens_is_stored_at_the_default_settings():
    config = SharedConfig()
    stored = candidate_tokens(config.chunk_length, config.tree_depth, config.slots_per_leaf)
    assert len(stored) == config.chunk_length // 4
    assert len(candidate_tokens(512, 3, 16)) == 512 // 4


def test_a_quarter_of_the_tokens_is_stored_in_a_real_context(make):
    llm = make(SharedConfig(injected_layers=1, chunk_length=128, tree_depth=3, slots_per_leaf=4))
    context = llm.read(tokens(384))
    assert [b.keys.shape[3] for b in chunks_of(context)] == [32, 32, 32]
    assert context.slots == 3 * llm.config.slots_per_chunk == 48


# What is stored suffices ---------------------------------------------------------------------


@pytest.mark.parametrize("search_by", ["tokens", "last"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_stored_candidates_serve_any_search_as_all_tokens_would(make, depth, search_by):
    sizes = dict(injected_layers=2, chunk_length=29, tree_depth=depth, slots_per_leaf=3)
    llm = make(SharedConfig(**sizes, search_by=search_by))
    generator = torch.Generator().manual_seed(depth)
    for length in (1, 2, 3, 5, 8, 11, 16, 21, 28, 29):
        few, all_of_them = (encoded(llm, tokens(length, length), every) for every in (False, True))
        (block,), (whole,) = few.blocks, all_of_them.blocks
        questions = torch.randn(12, 2, 16, generator=generator) if search_by == "tokens" else torch.randn(12, 1, 32)
        for question in [None, *questions]:
            (leaves,), (other,) = (find([b], llm.config, question) for b in (block, whole))
            assert torch.equal(leaves.leaves, other.leaves)
            found, expected = (gather_slots(b, leaves) for b in (block, whole))
            assert set(found[3].tolist()) <= set(block.tokens[0].tolist())
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("search_by", ["tokens", "last"])
def test_a_question_sees_the_same_memory_from_candidates_as_from_every_token(make, search_by):
    llm = make(dataclasses.replace(CONFIG, search_by=search_by))
    few, whole = (encoded(llm, tokens(16 * 4 + 9, 2), every) for every in (False, True))
    for seed in range(5):
        window = tokens(6, seed)[None]
        a, b = llm.recall(few, window), llm.recall(whole, window)
        assert torch.equal(a.mask, b.mask)
        assert all(torch.equal(x, y) for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True))


# Reading on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(80, 200), (70, 200), (70, 71, 72, 200), (3, 10, 64, 65, 200), (199, 200)])
def test_append_equals_reading_the_whole_bit_for_bit(llm, cuts):
    text, at = tokens(200, 4), 0
    context = llm.reader.new_context()
    for cut in cuts:
        context.append(text[at:cut])
        at = cut
    whole = llm.read(text)
    assert torch.equal(context.ids, whole.ids)
    assert_same_chunks(context, whole)
    assert (context.nbytes, context.slots) == (whole.nbytes, whole.slots)
    assert torch.equal(llm(WINDOW, context=context).logits, llm(WINDOW, context=whole).logits)


def test_append_takes_text_too(llm):
    context = llm.read("a" * 70)
    context.append("b" * 30)
    assert_same_chunks(context, llm.read("a" * 70 + "b" * 30))


def test_append_does_not_encode_complete_chunks_again(llm, monkeypatch):
    context = llm.read(tokens(16 * 5 + 7))
    calls = counted(monkeypatch, llm.lower, "encode")
    context.append(tokens(30, 2))  # the ragged 7 and 30 more: two full chunks and 5 tokens
    assert sorted(row for ids, *_ in calls for row in [ids.shape[1]] * ids.shape[0]) == [5, 16, 16]
    calls.clear()
    context.append(tokens(0))
    context.append(tokens(11, 3))  # 5 and 11 more complete a chunk
    assert sum(ids.shape[0] for ids, *_ in calls) <= 2
    calls.clear()
    context.append(tokens(3, 4))  # nothing was ragged
    assert [tuple(ids.shape) for ids, *_ in calls] == [(1, 3)]


def test_append_to_a_context_without_a_model_is_refused(llm, tmp_path):
    llm.read(tokens(70)).save(tmp_path / "c")
    context = Context.load(tmp_path / "c")
    with pytest.raises(UsageError, match="no model to read with"):
        context.append(tokens(3))
    assert context.tokens == 70


def test_first_chunks_share_their_storage_and_equal_a_shorter_text(llm):
    text = tokens(16 * 40 + 7)
    context = llm.read(text)
    for n in (1, 31, 32, 33, 40):
        part = context.first(n)
        assert (part.chunks, part.tokens) == (n, 16 * n)
        assert_same_chunks(part, encoded(llm, text[: 16 * n]))
        assert part.blocks[0].keys.data_ptr() == context.blocks[0].keys.data_ptr()
    assert (context.first(99).tokens, context.first(0).chunks) == (16 * 40 + 7, 0)
    assert context.chunks == 41


def test_append_to_first_chunks_leaves_the_whole_alone(llm):
    context = llm.read(tokens(16 * 5 + 7))
    part = context.first(6)
    before = chunks_of(context)
    part.append(tokens(20, 2))
    assert context.tokens == 87 and part.tokens == 107
    assert all(same(a, b) for a, b in zip(before, chunks_of(context), strict=True))


def test_progress_is_told_and_ends_at_the_total(llm):
    told = []
    context = llm.read(tokens(87), lambda done, total: told.append((done, total)))
    assert told[-1] == (87, 87) and len(told) == 6
    assert [d for d, _ in told] == sorted({d for d, _ in told}) and {t for _, t in told} == {87}
    told.clear()
    context.append(tokens(5, 2), lambda done, total: told.append((done, total)))
    assert told == [(92, 92)]


@pytest.mark.parametrize("ids", [[-1], [300], torch.tensor([5, 300]), [2**40], torch.tensor([2**32 + 5])], ids=str)
def test_token_ids_outside_the_vocabulary_are_refused(llm, ids):
    context = llm.read(tokens(70))
    with pytest.raises(UsageError, match="299"):
        context.append(ids)
    assert context.tokens == 70


def test_an_interrupted_reading_can_go_on(llm, monkeypatch):
    real, seen = llm.lower.encode, []

    def fail_third(*args):
        seen.append(1)
        if len(seen) == 3:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(llm.lower, "encode", fail_third)
    context = llm.reader.new_context()
    with pytest.raises(MemoryError):
        context.append(tokens(87))
    assert_same_chunks_after_use(llm, context, llm.read(tokens(87)))


def assert_same_chunks_after_use(llm, context, whole):
    assert torch.equal(llm(WINDOW, context=context).logits, llm(WINDOW, context=whole).logits)
    assert_same_chunks(context, whole)


# Another model, other settings ----------------------------------------------------------------


def test_a_context_of_another_model_is_refused(llm, make, tmp_path):
    context = llm.read(tokens(70))
    context.save(tmp_path / "c")
    other = make()
    with torch.no_grad():
        other.parts.layers[0].mlp.up_proj.weight.add_(0.5)
    other = SharedLLM.from_pretrained(other.detach(), adapter="none", config=CONFIG)
    for use in (lambda: Context.load(tmp_path / "c", other), lambda: other(WINDOW, context=context)):
        with pytest.raises(UsageError, match="another model") as error:
            use()
        assert_one_sentence(error)
    assert torch.equal(llm(WINDOW, context=context).logits, llm(WINDOW, context=llm.read(tokens(70))).logits)


@pytest.mark.parametrize("change", [{"chunk_length": 32}, {"tree_depth": 3}, {"slots_per_leaf": 4}], ids=str)
def test_a_context_of_other_settings_is_refused(llm, make, tmp_path, change):
    llm.read(tokens(70)).save(tmp_path / "c")
    ((name, value),) = change.items()
    with pytest.raises(UsageError, match=f"{name} {getattr(CONFIG, name)}.*{value}") as error:
        Context.load(tmp_path / "c", make(dataclasses.replace(CONFIG, **change)))
    assert_one_sentence(error)


def test_a_context_with_too_few_layers_is_refused(llm, make, tmp_path):
    llm.read(tokens(70)).save(tmp_path / "c")
    with pytest.raises(UsageError, match=r"injected_layers 3.*4"):
        Context.load(tmp_path / "c", make(dataclasses.replace(CONFIG, injected_layers=4)))


def test_a_context_of_more_layers_serves_an_adapter_of_fewer(llm, make, tmp_path):
    text = tokens(100, 2)
    llm.read(text[:70]).save(tmp_path / "c")
    fewer = make(dataclasses.replace(CONFIG, injected_layers=2))
    context = Context.load(tmp_path / "c", fewer)
    assert torch.equal(fewer(WINDOW, context=context).logits, fewer(WINDOW, context=fewer.read(text[:70])).logits)
    context.append(text[70:])
    assert torch.equal(fewer(WINDOW, context=context).logits, fewer(WINDOW, context=fewer.read(text)).logits)


def test_a_context_serves_another_adapter_of_the_same_model(llm, make, tmp_path):
    llm.read(tokens(70)).save(tmp_path / "c")
    other = make(dataclasses.replace(CONFIG, positions="sequence", null_slot=False))
    loaded = Context.load(tmp_path / "c", other)
    assert torch.equal(other(WINDOW, context=loaded).logits, other(WINDOW, context=other.read(tokens(70))).logits)


# Saving and loading ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 40, 87, 16 * 40])
def test_a_round_trip_gives_the_same_logits_and_answers(llm, tmp_path, length):
    context = llm.read(tokens(length, 2))
    context.save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    assert (loaded.tokens, loaded.chunks, loaded.slots, loaded.nbytes) == (
        context.tokens,
        context.chunks,
        context.slots,
        context.nbytes,
    )
    assert torch.equal(loaded.ids, context.ids)
    assert_same_chunks(loaded, context)
    assert llm.ask(loaded, "who?", max_new_tokens=6) == llm.ask(context, "who?", max_new_tokens=6)
    assert torch.equal(llm(WINDOW, context=loaded).logits, llm(WINDOW, context=context).logits)


def test_a_loaded_context_reads_on(llm, tmp_path):
    text = tokens(120, 2)
    llm.read(text[:87]).save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    loaded.append(text[87:])
    assert_same_chunks(loaded, llm.read(text))


def test_a_fresh_process_model_reads_the_context(llm, tmp_path):
    llm.read(tokens(87)).save(tmp_path / "c")
    again = randomize(SharedLLM.from_pretrained(tiny_model(), "none", CONFIG, tokenizer=byte_tokenizer()))
    context = Context.load(tmp_path / "c", again)
    assert torch.equal(again(WINDOW, context=context).logits, llm(WINDOW, context=llm.read(tokens(87))).logits)


def test_a_context_saved_in_bfloat16_serves_a_float32_model(tmp_path):
    half = SharedLLM.from_pretrained(tiny_model().bfloat16(), "none", CONFIG, tokenizer=byte_tokenizer())
    context = half.read(tokens(87))
    context.save(tmp_path / "c")
    full_model = tiny_model()
    full_model.load_state_dict({n: p.float() for n, p in half.model.state_dict().items()})
    full = randomize(SharedLLM.from_pretrained(full_model, "none", CONFIG, tokenizer=byte_tokenizer()))
    loaded = Context.load(tmp_path / "c", full)
    for kept, block in zip(context.blocks, loaded.blocks, strict=True):
        for name in ("keys", "values"):
            assert getattr(block, name).dtype == torch.float32
            assert torch.equal(getattr(block, name), getattr(kept, name).float())
    fresh = full(WINDOW, context=full.read(tokens(87)), search="later").logits
    near = full(WINDOW, context=loaded, search="later").logits
    assert (near - fresh).norm() < 0.1 * (fresh - full(WINDOW).logits).norm()


def test_a_context_is_json_and_safetensors_only(llm, tmp_path):
    llm.read(tokens(87)).save(tmp_path / "c")
    assert sorted(files(tmp_path / "c")) == ["context.json", "slots.safetensors"]
    about = json.loads((tmp_path / "c" / "context.json").read_text())
    assert (about["tokens"], about["model"], about["chunk_length"]) == (87, llm.fingerprint, 16)
    assert "ids" in load_file(tmp_path / "c" / "slots.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_parts_of_a_context_can_be_saved(llm, tmp_path):
    context = llm.read(tokens(16 * 40 + 7))
    context.first(33).save(tmp_path / "c")
    assert_same_chunks(Context.load(tmp_path / "c", llm), context.first(33))


def test_a_context_that_keeps_every_token_can_be_saved(llm, tmp_path):
    context = encoded(llm, tokens(16 + 5), every_token=True)
    context.save(tmp_path / "c")
    assert_same_chunks(Context.load(tmp_path / "c", llm), context)


def test_saving_over_a_context_replaces_it(llm, tmp_path):
    llm.read(tokens(400)).save(tmp_path / "c")
    llm.read(tokens(70, 2)).save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    assert torch.equal(loaded.ids, tokens(70, 2).int()) and loaded.chunks == 5
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_saving_into_an_empty_or_a_new_deep_folder_works(llm, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c", str(tmp_path / "d")):
        llm.read(tokens(70)).save(folder)
        assert Context.load(folder, llm).tokens == 70


FOREIGN = {
    "notes": {"notes.txt": "mine"},
    "notes beside a context": {"context.json": '{"format": "sharedllm-context"}', "notes.txt": "mine"},
    "another program's context.json": {"context.json": '{"build": "docker"}'},
    "a folder": {"src/main.py": "mine"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_saving_into_a_folder_with_foreign_files_is_refused(llm, tmp_path, name):
    folder = tmp_path / "c"
    for file, text in FOREIGN[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    before = files(tmp_path)
    with pytest.raises(UsageError, match="choose another folder") as error:
        llm.read(tokens(70)).save(folder)
    assert_one_sentence(error)
    assert files(tmp_path) == before


def test_saving_onto_a_file_is_refused(llm, tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(UsageError, match="choose another"):
        llm.read(tokens(70)).save(tmp_path / "c")
    assert files(tmp_path) == {"c": b"mine"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_the_old_context_and_no_temporary(llm, tmp_path, monkeypatch, exists):
    if exists:
        llm.read(tokens(70)).save(tmp_path / "c")
    before = files(tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharedllm.context, "save_file", full)
    with pytest.raises(WorkError, match="No space left on device") as error:
        llm.read(tokens(90, 2)).save(tmp_path / "c")
    assert_one_sentence(error)
    assert files(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["c"] if exists else [])


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["disk", "interrupt"])
def test_a_failure_while_taking_the_place_leaves_the_old_context(llm, tmp_path, monkeypatch, error):
    llm.read(tokens(70)).save(tmp_path / "c")
    before = files(tmp_path)
    real = type(tmp_path).rename

    def fail(path, target):
        if (path / "slots.safetensors").exists() and str(target) == str(tmp_path / "c") and path.name != "was":
            raise error
        return real(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises((WorkError, KeyboardInterrupt)):
        llm.read(tokens(90, 2)).save(tmp_path / "c")
    assert files(tmp_path) == before


# Broken files ---------------------------------------------------------------------------------


def edit(**changes):
    def change(folder):
        about = json.loads((folder / "context.json").read_text())
        about.update(changes)
        (folder / "context.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))

    return change


def cut(name, share):
    def change(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return change


def without(tensor):
    def change(folder):
        stored = load_file(folder / "slots.safetensors")
        del stored[tensor]
        save_file(stored, folder / "slots.safetensors")

    return change


def reshaped(name, change_tensor):
    def change(folder):
        stored = load_file(folder / "slots.safetensors")
        stored[name] = change_tensor(stored[name]).contiguous()
        save_file(stored, folder / "slots.safetensors")

    return change


BROKEN = {
    "no context.json": (UsageError, lambda f: (f / "context.json").unlink()),
    "context.json is half": (WorkError, cut("context.json", 0.5)),
    "context.json is empty": (WorkError, cut("context.json", 0)),
    "context.json is binary": (WorkError, lambda f: (f / "context.json").write_bytes(b"\xff\xfe\x00\x01")),
    "context.json is a list": (UsageError, lambda f: (f / "context.json").write_text("[1]")),
    "another format": (UsageError, edit(format="other")),
    "another version": (UsageError, edit(version=1)),
    "no version": (UsageError, edit(version=None)),
    "no model": (WorkError, edit(model=None)),
    "no chunk_length": (WorkError, edit(chunk_length=None)),
    "chunk_length is a word": (WorkError, edit(chunk_length="long")),
    "tokens do not agree": (WorkError, edit(tokens=88)),
    "more blocks than stored": (WorkError, edit(blocks=9)),
    "no slots.safetensors": (WorkError, lambda f: (f / "slots.safetensors").unlink()),
    "slots.safetensors is half": (WorkError, cut("slots.safetensors", 0.5)),
    "slots.safetensors lacks its end": (WorkError, cut("slots.safetensors", 0.999)),
    "slots.safetensors is empty": (WorkError, cut("slots.safetensors", 0)),
    "slots.safetensors is text": (WorkError, lambda f: (f / "slots.safetensors").write_text("hello " * 99)),
    "a tensor is missing": (WorkError, without("000000.values")),
    "ids are missing": (WorkError, without("ids")),
    "keys of fewer chunks": (WorkError, reshaped("000000.keys", lambda t: t[:, 1:])),
    "keys of fewer tokens": (WorkError, reshaped("000000.keys", lambda t: t[:, :, :, 1:])),
    "tokens of fewer chunks": (WorkError, reshaped("000000.tokens", lambda t: t[1:])),
    "representations of another size": (WorkError, reshaped("000000.reps", lambda t: t[..., 1:])),
    "scales of nothing packed": (WorkError, reshaped("000000.key_low", lambda t: t.new_zeros(3, 6, 2))),
    "keys and values of fewer layers": (
        WorkError,
        lambda f: [reshaped(f"000000.{n}", lambda t: t[1:])(f) for n in ("keys", "values")],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_context_is_refused_with_one_sentence(llm, tmp_path, name):
    kind, change = BROKEN[name]
    folder = tmp_path / "kept-context"
    llm.read(tokens(87)).save(folder)
    change(folder)
    before = files(folder)
    with pytest.raises(kind) as error:
        Context.load(folder, llm)
    assert type(error.value) is kind
    assert_one_sentence(error)
    assert "kept-context" in str(error.value)
    assert files(folder) == before


def test_what_is_no_folder_is_refused(llm, tmp_path):
    (tmp_path / "file").write_text("hello")
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path):
        with pytest.raises(UsageError, match="not a saved context") as error:
            Context.load(path, llm)
        assert_one_sentence(error)
