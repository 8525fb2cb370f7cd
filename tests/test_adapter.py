"""Adapter files: what is written, what is checked, what broken ones say."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sharedllm.adapter
from sharedllm import SharedConfig, SharedLLM, UsageError, WorkError
from sharedllm.adapter import load_weights, weights_digest
from tests.conftest import CONFIG, byte_tokenizer, hooks, randomize, tiny_model, tokens
from tests.contexts import assert_one_sentence, files
from tests.test_families import family_model

WINDOW = tokens(6, 1)[None]
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def saved(make, tmp_path):
    """A folder with a random adapter of the tiny model."""
    make().save_adapter(tmp_path / "mine")
    return tmp_path / "mine"


def load(folder, model=None, **arguments):
    return SharedLLM.from_pretrained(model or tiny_model(), adapter=folder, tokenizer=byte_tokenizer(), **arguments)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, init="zero", null_slot=False, positions="sequence"),
        SharedConfig(injected_layers=2, chunk_length=24, tree_depth=1, slots_per_leaf=5, split_noise=0.2),
    ],
    ids=["gates", "zero", "other sizes"],
)
def test_a_round_trip_gives_the_same_settings_weights_and_logits(make, tmp_path, config):
    llm = make(config)
    llm.save_adapter(tmp_path / "mine", about={"steps": 7})
    again = load(tmp_path / "mine")
    assert again.config == config
    assert again.adapter == str(tmp_path / "mine")
    for name, tensor in llm.injection.state_dict().items():
        assert torch.equal(again.injection.state_dict()[name], tensor), name
    a, b = (x(WINDOW, context=x.read(tokens(90, 2))).logits for x in (llm, again))
    assert torch.equal(a, b)
    assert json.loads((tmp_path / "mine" / SETTINGS).read_text())["about"] == {"steps": 7}


def test_a_folder_holds_json_and_safetensors_with_the_adapters_weights_alone(make, saved):
    assert sorted(files(saved)) == [SETTINGS, WEIGHTS]
    assert set(load_file(saved / WEIGHTS)) == set(dict(make().injection.named_parameters()))
    assert [p.name for p in saved.parent.iterdir()] == ["mine"]


def test_families_with_biases_and_query_norms_keep_them(tmp_path):
    for name in ("qwen2", "qwen3"):
        llm = SharedLLM.from_pretrained(family_model(name), adapter="none", config=CONFIG)
        with torch.no_grad():
            for parameter in llm.injection.parameters():
                parameter.add_(1)
        llm.save_adapter(tmp_path / name)
        again = load(tmp_path / name, family_model(name)).injection.state_dict()
        assert all(torch.equal(again[n], t) for n, t in llm.injection.state_dict().items())


def test_bfloat16_halves_the_file(make, tmp_path):
    llm = make()
    llm.save_adapter(tmp_path / "full")
    llm.save_adapter(tmp_path / "half", dtype=torch.bfloat16)
    full, half = ((tmp_path / n / WEIGHTS).stat().st_size for n in ("full", "half"))
    header = 8 + int.from_bytes((tmp_path / "half" / WEIGHTS).read_bytes()[:8], "little")
    assert abs((half - header) * 2 - (full - header)) <= 64  # headers differ by a few characters
    again = load(tmp_path / "half")
    for name, tensor in llm.injection.state_dict().items():
        loaded = again.injection.state_dict()[name]
        assert loaded.dtype == torch.float32 and torch.equal(loaded, tensor.bfloat16().float())


def test_an_adapter_with_skipped_layers_is_saved_and_goes_on_from_one_without(make, saved, tmp_path):
    config = dataclasses.replace(CONFIG, skipped_layers=1)
    skipping = make(config)
    skipping.save_adapter(tmp_path / "fewer")
    again = load(tmp_path / "fewer")
    assert again.config == config
    assert weights_digest(again.injection) == weights_digest(skipping.injection)
    assert {name.split(".")[1] for name in again.injection.state_dict()} == {"1", "2"}
    load_weights(saved, skipping.injection, partly=True)
    whole = load(saved).injection.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in skipping.injection.state_dict().items())


def test_saving_again_replaces_the_adapter(make, saved):
    other = make(dataclasses.replace(CONFIG, injected_layers=2))
    other.save_adapter(saved)
    assert load(saved).config.injected_layers == 2
    assert [p.name for p in saved.parent.iterdir()] == ["mine"]


def test_a_full_disk_leaves_the_old_adapter_and_no_temporary(make, saved, monkeypatch):
    before = files(saved.parent)

    def full(weights, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharedllm.adapter, "save_file", full)
    for folder in (saved, saved.parent / "new"):
        with pytest.raises(WorkError, match="No space left on device") as error:
            make().save_adapter(folder)
        assert_one_sentence(error)
    assert files(saved.parent) == before
    assert [p.name for p in saved.parent.iterdir()] == ["mine"]


def test_saving_into_a_folder_with_foreign_files_leaves_them(make, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years of it")
    with pytest.raises(UsageError, match="not an adapter") as error:
        make().save_adapter(tmp_path / "work")
    assert_one_sentence(error)
    assert files(tmp_path) == {"work/thesis.txt": b"years of it"}


@pytest.mark.parametrize(
    "about", [{"peft_type": "LORA", "r": 8}, {"format": "sharedllm-encoder-decoder"}, [1]], ids=str
)
def test_saving_over_an_adapter_of_another_kind_leaves_it(make, tmp_path, about):
    # A LoRA of peft has the same three names.
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / SETTINGS).write_text(json.dumps(about))
    (tmp_path / "lora" / WEIGHTS).write_bytes(b"weeks of it")
    (tmp_path / "lora" / "README.md").write_text("what it is")
    before = files(tmp_path)
    for save in (make().save_adapter, make().save_pretrained):
        with pytest.raises(UsageError, match="adapter of another kind") as error:
            save(tmp_path / "lora")
        assert_one_sentence(error)
    assert files(tmp_path) == before


def test_saving_onto_a_file_leaves_it(make, tmp_path):
    (tmp_path / "thesis").write_text("years of it")
    with pytest.raises((UsageError, WorkError)):
        make().save_adapter(tmp_path / "thesis")
    assert files(tmp_path) == {"thesis": b"years of it"}


# Another model --------------------------------------------------------------------------------

MODELS = {
    "family": lambda: family_model("mistral"),
    "hidden_size": lambda: tiny_model(hidden_size=48),
    "heads": lambda: tiny_model(num_attention_heads=8),
    "kv_heads": lambda: tiny_model(num_key_value_heads=4),
    "head_dim": lambda: tiny_model(head_dim=16),
    "layers": lambda: tiny_model(num_hidden_layers=5),
}
TRAINED = {"family": "llama", "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "layers": 4}


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_of_another_model_is_refused_and_named(saved, name):
    model = MODELS[name]()
    with pytest.raises(UsageError, match=f"with {name} {TRAINED[name]}, this one has") as error:
        load(saved, model)
    assert_one_sentence(error)
    assert hooks(model) == []


def test_other_settings_than_the_adapters_are_refused(saved):
    assert load(saved, config=CONFIG).config == CONFIG
    with pytest.raises(UsageError, match="other settings"):
        load(saved, config=dataclasses.replace(CONFIG, chunk_length=32))


# Broken files ---------------------------------------------------------------------------------


def edit(change):
    def apply(folder):
        about = json.loads((folder / SETTINGS).read_text())
        change(about)
        (folder / SETTINGS).write_text(json.dumps(about))

    return apply


def weights(change):
    def apply(folder):
        stored = load_file(folder / WEIGHTS)
        change(stored)
        save_file(stored, folder / WEIGHTS)

    return apply


def cut(name, share):
    def apply(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return apply


GATE = "branches.1.gate"
BROKEN = {
    "weights are half": (WorkError, cut(WEIGHTS, 0.5), "cannot be read"),
    "weights lack their end": (WorkError, cut(WEIGHTS, 0.999), "cannot be read"),
    "weights are empty": (WorkError, cut(WEIGHTS, 0), "cannot be read"),
    "weights are missing": (WorkError, lambda f: (f / WEIGHTS).unlink(), "cannot be read"),
    "weights are text": (WorkError, lambda f: (f / WEIGHTS).write_text("hello " * 50), "cannot be read"),
    "a tensor is missing": (WorkError, weights(lambda w: w.pop(GATE)), f"no tensor {GATE}"),
    "a tensor of another shape": (WorkError, weights(lambda w: w.update({GATE: torch.ones(5)})), GATE),
    "an extra tensor": (WorkError, weights(lambda w: w.update(more=torch.ones(2))), "tensor more"),
    "NaN": (WorkError, weights(lambda w: w[GATE].fill_(torch.nan)), f"not numbers in {GATE}"),
    "infinity": (WorkError, weights(lambda w: w[GATE].fill_(torch.inf)), GATE),
    "settings are half": (WorkError, cut(SETTINGS, 0.5), "cannot be read"),
    "settings are empty": (WorkError, cut(SETTINGS, 0), "cannot be read"),
    "settings are binary": (WorkError, lambda f: (f / SETTINGS).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "settings are a list": (UsageError, lambda f: (f / SETTINGS).write_text("[1]"), "another kind"),
    "settings are missing": (UsageError, lambda f: (f / SETTINGS).unlink(), SETTINGS),
    "another kind": (UsageError, edit(lambda a: a.update(format="lora")), "another kind"),
    "another version": (UsageError, edit(lambda a: a.update(version=9)), "version 9"),
    "a changed weight": (WorkError, weights(lambda w: w[GATE].add_(1)), "not the file that was saved"),
    "a changed hash": (WorkError, edit(lambda a: a.update(weights_sha256="0" * 64)), "not the file that was saved"),
    "no hash": (WorkError, edit(lambda a: a.pop("weights_sha256")), "lacks the hash"),
    "no config": (WorkError, edit(lambda a: a.pop("config")), "config"),
    "no model": (WorkError, edit(lambda a: a.pop("model")), "model"),
    "an unknown setting": (
        UsageError,
        edit(lambda a: a["config"].update(chunk_lenght=16)),
        r"'chunk_lenght'.*Did you mean chunk_length\?",
    ),
    "a setting out of range": (UsageError, edit(lambda a: a["config"].update(tree_depth=0)), "tree_depth is 0"),
    "a rank beyond any matrix": (
        UsageError,
        edit(lambda a: a["config"].update(rank=10**9)),
        r"rank is 1000000000.*use 32 at",
    ),
    "a setting of another type": (UsageError, edit(lambda a: a["config"].update(split_noise="much")), "split_noise"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_refused_and_leaves_the_model_without_hooks(saved, name):
    kind, change, says = BROKEN[name]
    change(saved)
    model, before = tiny_model(), files(saved)
    plain = model(WINDOW).logits
    with pytest.raises(kind, match=says) as error:
        load(saved, model)
    assert type(error.value) is kind
    assert_one_sentence(error)
    assert hooks(model) == []
    assert torch.equal(model(WINDOW).logits, plain)
    assert files(saved) == before


def test_tensors_of_other_shapes_are_refused_before_they_are_read(saved, monkeypatch):
    weights(lambda w: w.update({GATE: torch.ones(5)}))(saved)

    class Header:
        """Of the file what its header says."""

        def __init__(self, *arguments):
            self.opened = safe_open(*arguments)

        def __enter__(self):
            self.opened.__enter__()
            return self

        def __exit__(self, *error):
            return self.opened.__exit__(*error)

        def keys(self):
            return self.opened.keys()

        def get_slice(self, name):
            return self.opened.get_slice(name)

    monkeypatch.setattr(sharedllm.adapter, "safe_open", Header)
    with pytest.raises(WorkError, match=GATE):
        load(saved)


def test_a_missing_adapter_is_refused(tmp_path):
    model = tiny_model()
    with pytest.raises(UsageError, match="not an adapter") as error:
        load(tmp_path / "nowhere", model)
    assert_one_sentence(error)
    assert hooks(model) == []


def test_a_model_whose_adapter_is_refused_keeps_its_dtype(saved):
    model = tiny_model()
    cut(WEIGHTS, 0.5)(saved)
    for folder in (saved, saved.parent / "nowhere"):
        with pytest.raises((UsageError, WorkError)):
            load(folder, model, dtype="bfloat16")
        assert model.dtype == torch.float32 and hooks(model) == []


@pytest.mark.parametrize("wrong", [{"injected_layers": 5}, {"rank": 33}, {"chunk_length": 65}], ids=str)
def test_a_model_that_is_too_small_for_its_settings_keeps_its_dtype(wrong):
    model, ((name, value),) = tiny_model(), wrong.items()
    with pytest.raises(UsageError, match=f"{name} is {value}") as error:
        SharedLLM.from_pretrained(model, "none", dataclasses.replace(CONFIG, **wrong), dtype="bfloat16")
    assert_one_sentence(error)
    assert model.dtype == torch.float32 and hooks(model) == []


def test_no_adapter_is_an_untrained_one():
    model = tiny_model()
    plain = model(WINDOW).logits
    for adapter in ("none", None, "default"):
        llm = SharedLLM.from_pretrained(model, adapter=adapter, config=CONFIG, tokenizer=byte_tokenizer())
        assert llm.adapter == "none"
        assert torch.equal(llm(WINDOW, context=llm.read(tokens(90))).logits, plain)
        llm.detach()


def test_the_shipped_adapter_of_exactly_this_model_is_the_default(make, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sharedllm.adapter, "SHIPPED", tmp_path)
    make().save_adapter(tmp_path / "tiny")
    assert load("default").adapter == "tiny"
    assert torch.equal(load("default").injection.branches[0].gate, make().injection.branches[0].gate)
    other = tiny_model()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.add_(0.5)
    assert load("default", other, config=CONFIG).adapter == "none"
    assert "other settings" not in caplog.text
    assert load("default", config=dataclasses.replace(CONFIG, chunk_length=32)).adapter == "none"
    assert "is not used: it was trained with other settings than the config given" in caplog.text
    assert "ships for LlamaForCausalLM" in caplog.text


def test_bits_that_are_kept_are_chosen_beside_the_adapter(make, tmp_path, monkeypatch):
    monkeypatch.setattr(sharedllm.adapter, "SHIPPED", tmp_path)
    make(dataclasses.replace(CONFIG, stored_bits=4)).save_adapter(tmp_path / "tiny")
    eight = load("default", stored_bits=8)
    given = load("default", config=dataclasses.replace(CONFIG, stored_bits=8))
    four, named = load("default"), load(tmp_path / "tiny", stored_bits=8)
    assert {llm.adapter for llm in (eight, given, four, named)} == {"tiny"}
    assert [llm.config.stored_bits for llm in (eight, given, named, four)] == [8, 8, 8, 4]
    finer, coarser = eight.read(tokens(90)), four.read(tokens(90))
    assert finer.nbytes > coarser.nbytes and torch.equal(finer.blocks[0].keys, given.read(tokens(90)).blocks[0].keys)
    logits = eight(WINDOW, context=finer).logits
    assert torch.equal(four(WINDOW, context=finer).logits, logits), "what is kept says in how many bits"
    assert not torch.equal(four(WINDOW, context=coarser).logits, logits)
    with pytest.raises(UsageError, match="stored_bits is 5"):
        load("default", stored_bits=5)


def test_a_model_smaller_than_the_usual_rank_is_attached_to_without_settings():
    assert SharedLLM.from_pretrained(tiny_model(), adapter="none").config.rank == 32


def test_a_low_rank_adapter_saves_its_change_alone_and_starts_as_nothing(make, tmp_path):
    config = dataclasses.replace(CONFIG, rank=2)
    llm = make(config, random=False)
    ids = tokens(5)[None]
    assert torch.equal(llm(ids, context=llm.read(tokens(80))).logits, llm.model(ids).logits)
    randomize(llm)
    changed = llm(ids, context=llm.read(tokens(80))).logits
    llm.save_adapter(tmp_path / "low")
    names = set(load_file(tmp_path / "low/adapter_model.safetensors"))
    assert not any(name.endswith(("query.weight", "output.weight")) for name in names)
    again = SharedLLM.from_pretrained(tiny_model(), adapter=tmp_path / "low", tokenizer=byte_tokenizer())
    assert torch.equal(again(ids, context=again.read(tokens(80))).logits, changed)
