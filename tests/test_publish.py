"""Adapters given away: a folder with its card, the Hub (a stand-in for it: no network here), the format before."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import save_file

from sharedllm import SharedLLM, UsageError, WorkError
from sharedllm.evaluate.row import refused
from sharedllm.publish import _named
from tests.conftest import byte_tokenizer, tiny_model, tokens
from tests.contexts import assert_one_sentence, files

ROWS = [
    {"task": "perplexity", "method": "shared", "length": 8192, "window": 1024, "metric": "nll", "value": 2.0364,
     "low": 1.9, "high": 2.1, "samples": 24, "dtype": "bfloat16", "device": "cpu"},
    {"task": "needle", "method": "full", "length": 8192, "metric": "found", "reason": "does not fit into memory"},
]  # fmt: skip
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def load(adapter):
    return SharedLLM.from_pretrained(tiny_model(), adapter=adapter, tokenizer=byte_tokenizer())


def assert_same_adapter(a, b):
    assert a.config == b.config
    weights = a.injection.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in b.injection.state_dict().items())


def test_what_is_given_away_names_no_folder_of_the_machine():
    recipe = {"output": "/home/me/runs/own", "data": "data/text", "start": "default", "steps": 300}
    assert _named({"recipe": recipe, "steps": 300}) == {"recipe": {**recipe, "output": "own"}, "steps": 300}
    assert _named({}) == {}


class Hub:
    """What of the Hub is used, over a folder: repositories that are made, uploads, downloads of named files."""

    def __init__(self, folder):
        self.folder, self.made, self.asked = folder, [], []

    def create_repo(self, repo_id, private=None, exist_ok=False):
        assert exist_ok
        self.made.append((repo_id, private))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, revision=None, allow_patterns=None):
        self.asked.append((repo_id, revision, sorted(allow_patterns)))
        if not (self.folder / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the Hub\nand more")
        shutil.copytree(self.folder / repo_id, self.folder / "cache", dirs_exist_ok=True)
        return str(self.folder / "cache")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_folder_has_the_adapter_and_its_card(make, tmp_path):
    llm = make()
    llm.save_pretrained(tmp_path / "mine", ROWS, license="apache-2.0")
    assert sorted(files(tmp_path / "mine")) == FILES
    assert_same_adapter(load(tmp_path / "mine"), llm)
    about = json.loads((tmp_path / "mine" / FILES[1]).read_text())
    assert about["weights_sha256"] == hashlib.sha256((tmp_path / "mine" / FILES[2]).read_bytes()).hexdigest()
    card = (tmp_path / "mine" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], front["license"]) == ("sharedllm", "apache-2.0")
    assert "| perplexity | shared | 8,192 | 1,024 | nll | 2.036 [1.900, 2.100] | 24 | bfloat16 | cpu |" in card
    assert "does not fit" not in card and "| `chunk_length` | 16 |" in card
    llm.save_pretrained(tmp_path / "mine")  # over itself
    assert "Nothing was measured" in (tmp_path / "mine" / "README.md").read_text()


def test_what_training_wrote_and_the_dtype_stay(make, tmp_path, hub):
    llm, told = make(), {"recipe": {"steps": 7}, "steps": 7, "rates": [{"from_step": 1}]}
    llm.save_adapter(tmp_path / "trained", told, dtype=torch.bfloat16)
    before = (tmp_path / "trained" / FILES[2]).read_bytes()
    again = load(tmp_path / "trained")
    assert again.injection.branches[0].gate.dtype == torch.float32
    again.save_pretrained(tmp_path / "mine")
    again.push_to_hub("me/mine")
    for folder in (tmp_path / "mine", hub.folder / "me/mine"):
        assert json.loads((folder / FILES[1]).read_text())["about"] == told
        assert (folder / FILES[2]).read_bytes() == before
    make().save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / FILES[1]).read_text())["about"] == {}
    assert (tmp_path / "new" / FILES[2]).stat().st_size > len(before)


def test_what_was_refused_is_not_in_the_card(make, tmp_path):
    llm = make()
    row = refused(llm, "needle", "found", "full", 8192, "it would take about 90.0 GB of memory", 0)
    llm.save_pretrained(tmp_path / "mine", [row])
    assert "Nothing was measured" in (tmp_path / "mine" / "README.md").read_text()
    llm.save_pretrained(tmp_path / "mine", [row, ROWS[0]])
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "2.036 [1.900, 2.100]" in card and "| full |" not in card


def test_the_card_says_what_it_was_trained_on_and_where_it_is(make, tmp_path, hub):
    llm = make()
    llm.save_pretrained(tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert 'adapter="user/name")' in card and "**Not for**" in card and "## Trained on" not in card
    llm.about = {"sources": {"manuals": {"licence": "CC0-1.0", "version": "1.2", "tokens": 12345}}}
    llm.push_to_hub("me/mine")
    card = (hub.folder / "me/mine/README.md").read_text()
    assert 'adapter="me/mine")' in card
    assert "\n\n## Trained on\n\n| source | version | licence | tokens |\n" in card
    assert "\n| manuals | 1.2 | CC0-1.0 | 12,345 |\n\n## Measured\n" in card


def test_the_model_of_a_repository_is_named_and_a_path_is_not(make, tmp_path):
    for name, says in (("someone/model", True), ("/home/me/model", False), ("", False)):
        llm = make()
        llm.name = name
        llm.save_pretrained(tmp_path / "mine")
        card = (tmp_path / "mine" / "README.md").read_text()
        assert (yaml.safe_load(card.split("---\n")[1]).get("base_model") == name) == says
        assert "/home/me" not in card


def test_nothing_that_is_pushed_names_a_folder_of_the_machine(make, hub):
    for name, known_as in (("/home/me/secret/model.gguf", "model.gguf"), ("someone/model", "someone/model"), ("", "")):
        llm = make()
        llm.name, llm.about = name, {"recipe": {"output": "/home/me/runs/own", "model": name or None}}
        llm.push_to_hub("me/mine")
        pushed = files(hub.folder / "me/mine")
        assert sorted(pushed) == FILES and not any(b"/home" in found or b"secret" in found for found in pushed.values())
        assert json.loads(pushed[FILES[1]])["base_model_name_or_path"] == known_as


def test_a_folder_here_is_no_repository_of_a_stranger(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/my-llama").mkdir(parents=True)
    for name in ("runs/my-llama", "../llama", "./llama", "someone/model@v1"):
        llm = make()
        llm.name = name
        llm.save_pretrained(tmp_path / "mine")
        card = (tmp_path / "mine" / "README.md").read_text()
        assert "base_model" not in yaml.safe_load(card.split("---\n")[1]) and f"'{name}'" not in card


def test_a_path_that_is_not_there_is_not_asked_of_the_hub(hub):
    for name in ("../adapter", "./adapter"):
        with pytest.raises(UsageError, match="is not an adapter"):
            load(name)
    assert hub.asked == []


def test_someone_elses_readme_is_not_replaced(make, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "README.md").write_text("years of it")
    with pytest.raises(UsageError, match="not an adapter"):
        make().save_pretrained(tmp_path / "work")
    assert files(tmp_path) == {"work/README.md": b"years of it"}


def test_an_adapter_goes_to_the_hub_and_comes_back_by_name(make, hub):
    llm = make()
    assert llm.push_to_hub("me/mine", ROWS, private=True) == "https://hub/me/mine/commit/1"
    assert hub.made == [("me/mine", True)] and sorted(files(hub.folder / "me/mine")) == FILES
    for name, revision in (("me/mine", None), ("me/mine@v1", "v1")):
        again = load(name)
        assert_same_adapter(again, llm)
        assert again.adapter == name
        assert hub.asked[-1] == ("me/mine", revision, FILES[1:])  # safetensors and JSON, nothing else


def test_what_the_hub_does_not_give_is_one_sentence(hub, monkeypatch, make):
    with pytest.raises(UsageError, match=r"'me/nothing'.*cannot reach the Hub\)") as error:
        load("me/nothing")
    assert_one_sentence(error)

    def refuse(*_, **__):
        raise OSError("401: who are you?")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(WorkError, match=r"me/mine.*401") as error:
        make().push_to_hub("me/mine")
    assert_one_sentence(error)


def test_a_changed_file_of_the_hub_is_refused(make, hub):
    llm = make()
    llm.push_to_hub("me/mine")
    weights = {name: tensor + 1 for name, tensor in llm.injection.state_dict().items()}
    save_file(weights, hub.folder / "me/mine" / FILES[2])
    with pytest.raises(WorkError, match="not the file that was saved"):
        load("me/mine")


def test_a_folder_is_taken_before_the_hub(make, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make().save_adapter("me/mine")
    assert load("me/mine").adapter == "me/mine" and hub.asked == []


def test_version_1_without_a_hash_is_read(make, tmp_path):
    """The files as release 0.1.0 wrote them."""
    llm = make()
    folder = tmp_path / "old"
    folder.mkdir()
    save_file(llm.injection.state_dict(), folder / FILES[2])
    sizes = {"family": "llama", "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "layers": 4}
    about = {"format": "sharedllm-adapter", "version": 1, "fingerprint": llm.fingerprint, "model": sizes}
    (folder / FILES[1]).write_text(json.dumps({**about, "config": llm.config.to_dict(), "about": {}}))
    again, window = load(folder), tokens(5)[None]
    assert_same_adapter(again, llm)
    again.save_adapter(tmp_path / "new")
    assert json.loads((tmp_path / "new" / FILES[1]).read_text())["version"] == 2
    text = tokens(90, 2)
    assert torch.equal(again(window, context=again.read(text)).logits, llm(window, context=llm.read(text)).logits)
