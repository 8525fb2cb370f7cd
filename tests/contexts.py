"""What tests of contexts share: making, comparing, and what a message for people looks like."""

from __future__ import annotations

import torch

from sharedllm.encoded import Encoded


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


def segments(folder):
    """The files of chunks, the largest first."""
    return sorted(folder.glob("segment-*.safetensors"), key=lambda f: -f.stat().st_size)
