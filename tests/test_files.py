"""Folders that are written whole or not at all, also where a process was killed at it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sharedllm.files import STALE_SECONDS, replaced_file, replaced_folder


def write(folder: Path, text: str) -> None:
    with replaced_folder(folder) as temporary:
        (temporary / "a.txt").write_text(text)


def names(place: Path) -> set[str]:
    return {entry.name for entry in place.iterdir()}


def test_a_file_has_its_name_once_it_is_on_the_disk(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.fstat(handle).st_ino), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda file, name: (done.append("named"), replace(file, name))[1])
    with replaced_file(tmp_path / "kept") as unfinished:
        unfinished.write_text("one")
    assert done == [(tmp_path / "kept").stat().st_ino, "named", tmp_path.stat().st_ino]
    assert names(tmp_path) == {"kept"}


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for text in ("one", "two"):
        write(tmp_path / "kept", text)
        assert (tmp_path / "kept/a.txt").read_text() == text and names(tmp_path) == {"kept"}


def test_a_folder_that_a_killed_process_had_put_aside_is_put_back(tmp_path):
    folder = tmp_path / "kept"
    write(folder, "one")
    (tmp_path / ".kept-old-a1b2c3_4").mkdir()
    folder.rename(tmp_path / ".kept-old-a1b2c3_4/was")  # and then it was killed
    with pytest.raises(RuntimeError), replaced_folder(folder):
        raise RuntimeError
    assert (folder / "a.txt").read_text() == "one"


def test_what_killed_processes_left_is_removed_once_nobody_writes_there_any_more(tmp_path):
    old, new, others = ".kept-abcdefgh", ".kept-12345678", {".kept-other-abcdefgh", ".kept-2-old-abcdefgh"}
    for name in (old, new, *others):
        (tmp_path / name / "was").mkdir(parents=True)
    long_ago = time.time() - STALE_SECONDS - 1
    for name in (old, *others):
        os.utime(tmp_path / name, (long_ago, long_ago))
    write(tmp_path / "kept", "one")
    assert names(tmp_path) == {"kept", new, *others}
