"""A tiny model in a folder, and documents to read with it, some of them poisoned."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from sharedllm import SharedLLM
from sharedllm.collection.engines import LocalEngine
from sharedllm.collection.worker import Worker
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model

WORDS = "amber basin cedar delta ember fjord grove haven inlet jetty knoll ledge marsh north orbit plain quarry".split()
MOST_BYTES = 20_000
"""Of a document, in these tests."""


def text(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Where the model is, how it is loaded, and the model."""
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    llm = randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=tokenizer))
    llm.save_adapter(folder / "adapter")
    names = {"model": str(folder / "model"), "adapter": str(folder / "adapter")}
    loading = {**names, "device": "cpu", "dtype": "float32"}
    return SimpleNamespace(folder=folder, loading=loading, llm=SharedLLM.from_pretrained(**loading))


@pytest.fixture
def local(home):
    """`local(where)`: the engine of this process."""
    return lambda where: LocalEngine(Worker(home.llm, where, MOST_BYTES))


def documents(folder, count: int = 6, words: int = 40):
    """A folder with `count` documents that can be read, and three that cannot: binary, empty, huge."""
    (folder / "more").mkdir(parents=True)
    for i in range(count):
        (folder / ("more" if i % 2 else ".") / f"{i}.txt").write_text(text(i, words + i))
    (folder / "binary.txt").write_bytes(b"\x00\xff\x00" * 50)
    (folder / "empty.txt").write_text(" \n")
    (folder / "huge.txt").write_text("x" * (MOST_BYTES + 1))
    return folder
