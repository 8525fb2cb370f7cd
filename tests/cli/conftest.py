"""A folder with a model, an adapter and a text, and `eval` run in it."""

from __future__ import annotations

import pytest
import torch

from sharedllm import SharedLLM
from sharedllm.cli import main
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, an adapter for it, and a text."""
    folder = tmp_path_factory.mktemp("home")
    model, tokenizer = tiny_model(max_position_embeddings=512), byte_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=tokenizer)).save_adapter(
        folder / "adapter"
    )
    (folder / "long.txt").write_text(" ".join(f"Item {i} is kept in a box of its own." for i in range(60)))
    return folder


@pytest.fixture
def command(home, monkeypatch, capsys):
    """Run `eval` in `home`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> tuple[int, str, str]:
        model = ("--model", "model", "--adapter", "adapter", "--dtype", "float32")
        task, *options = arguments
        with pytest.raises(SystemExit) as ended:
            main(["eval", task, "-o", "rows.jsonl", *model, *options])
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    yield call
    torch.set_num_threads(threads)
