"""Texts to measure on are written whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharedllm.data import DataRecipe, texts
from sharedllm.errors import WorkError
from tests.contexts import files

from .helpers import sentences


def test_a_full_disk_leaves_a_text_as_it_was(
    tmp_path: Path, make_recipe: Callable[..., DataRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "python_library", lambda: "import a\n")
    monkeypatch.setattr(texts, "reference_text", lambda: "A language.\n")
    write, out = Path.write_text, tmp_path / "out"
    written = texts.write_texts(make_recipe(), out, cache=tmp_path / "cache")
    assert {file.name for file in written} == set(files(out)) and (out / "water.txt").read_text() == sentences("rivers")
    before = files(out)

    def full(self: Path, text: str, **settings: Any) -> None:
        write(self, text[: len(text) // 2], **settings)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WorkError, match="No space left on device"):
        texts.write_texts(make_recipe(), out, cache=tmp_path / "cache")
    assert files(out) == before
