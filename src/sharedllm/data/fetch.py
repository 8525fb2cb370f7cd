"""Fetching a source's files: Debian packages, Python wheels, installed packages, a user's own files.

Nothing fetched is installed or run: archives are read in memory, member by member, and only wheels are accepted from
the package index, because a source distribution may run its own code when pip looks at it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sharedllm.data.recipe import SourceSpec
from sharedllm.errors import UsageError, WorkError

OWN_FILES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class Fetched:
    """What a source's fetch gave: its version, {name: sha256} of what was fetched, {path: bytes} of what matched."""

    version: str
    hashes: dict[str, str]
    members: dict[str, bytes]


def default_cache() -> Path:
    """Where fetched archives are kept between builds: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sharedllm" / "sources"


def fetch(spec: SourceSpec, cache: Path, folder: Path) -> Fetched:
    """Fetches one source and reads the members its globs select.

    `cache` keeps downloaded archives; `folder` is where a user's relative paths start. Raises UsageError when what was
    asked for does not exist here, WorkError when a download, a file or an archive fails.
    """
    try:
        return _fetch(spec, cache, folder)
    except OSError as error:
        raise WorkError(f"Source '{spec.name}' could not be read: {error.strerror} ({error.filename}).") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise WorkError(f"An archive of source '{spec.name}' in {cache} is damaged ({error}); delete it.") from error


def _fetch(spec: SourceSpec, cache: Path, folder: Path) -> Fetched:
    if spec.type == "files":
        return _own_files(spec, folder)
    if spec.type == "installed":
        return _installed(spec)
    archive = _debian(spec, cache / "debian") if spec.type == "debian" else _wheel(spec, cache / "pypi")
    reader = _tar_members if spec.type == "debian" else _zip_members
    version = archive.name.split("_")[1].replace("%3a", ":") if spec.type == "debian" else spec.version
    return Fetched(version, {archive.name: sha256_file(archive)}, dict(sorted(reader(archive, spec))))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def selected(path: str, spec: SourceSpec) -> bool:
    """Whether the source's globs take this path: some include glob (if any is given) and no exclude glob."""
    taken = not spec.include or any(fnmatch(path, glob) for glob in spec.include)
    return taken and not any(fnmatch(path, glob) for glob in spec.exclude)


def _own_files(spec: SourceSpec, folder: Path) -> Fetched:
    hashes: dict[str, str] = {}
    members: dict[str, bytes] = {}
    for entry in spec.paths:
        root = folder / Path(entry).expanduser()
        if not root.exists():
            raise UsageError(f"Source '{spec.name}' names {root}, which does not exist.")
        found = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        if not root.is_dir() and root.suffix.lower() not in OWN_FILES:
            raise UsageError(f"Source '{spec.name}' names {root}; expected a file ending in {', '.join(OWN_FILES)}.")
        for path in found:
            # A name that is no text, as older systems wrote them, could not be listed.
            name = path.relative_to(root.parent).as_posix().encode("utf-8", "backslashreplace").decode()
            if path.suffix.lower() in OWN_FILES and selected(name, spec):
                data = path.read_bytes()
                if members.setdefault(name, data) != data:
                    raise UsageError(f"Source '{spec.name}' has two files called {name}; put them in two sources.")
                hashes[name] = hashlib.sha256(members[name]).hexdigest()
    return Fetched(spec.version, hashes, members)


def _installed(spec: SourceSpec) -> Fetched:
    """Reads a package of this Python environment; what stands for its archive's hash is that of its RECORD."""
    try:
        package = importlib.metadata.distribution(spec.package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(f"Source '{spec.name}' needs the package {spec.package}; pip install it first.") from error
    if spec.version and spec.version != package.version:
        raise UsageError(f"Source '{spec.name}' asks for {spec.package} {spec.version}; {package.version} is here.")
    members: dict[str, bytes] = {}
    for entry in package.files or []:
        name = entry.as_posix()
        if not name.startswith("..") and selected(name, spec):
            members[name] = Path(str(entry.locate())).read_bytes()
    record = hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()
    return Fetched(package.version, {"RECORD": record}, dict(sorted(members.items())))


def _debian(spec: SourceSpec, cache: Path) -> Path:
    """The path of the package's .deb in the cache, downloaded if it is not there."""
    pattern = f"{spec.package}_{spec.version.replace(':', '%3a') or '*'}_*.deb"
    found = sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        if shutil.which("apt-get") is None:
            raise UsageError(f"Source '{spec.name}' is a Debian package, and this machine has no apt-get to fetch it.")
        wanted = f"{spec.package}={spec.version}" if spec.version else spec.package
        cache.mkdir(parents=True, exist_ok=True)
        try:
            _run(["apt-get", "download", wanted], cache, spec)
        except WorkError as error:  # the package lists may be missing or old: refresh them once
            try:
                _run(["apt-get", "update"], cache, spec)
            except WorkError:  # who may not do that wants to know what was missing
                raise error from None
            _run(["apt-get", "download", wanted], cache, spec)
        found = sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise WorkError(f"Source '{spec.name}': apt-get gave no file matching {pattern}.")
    return found[-1]


def _wheel(spec: SourceSpec, cache: Path) -> Path:
    """The path of the package's wheel in the cache, downloaded if it is not there."""
    folder = cache / f"{spec.package}-{spec.version}"
    if not list(folder.glob("*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"{spec.package}=={spec.version}"
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", wanted], folder, spec)
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise WorkError(f"Source '{spec.name}': pip gave no wheel of {spec.package} {spec.version}.")
    return found[0]


def _run(command: list[str], folder: Path, spec: SourceSpec) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise WorkError(f"Source '{spec.name}' could not be fetched ({' '.join(command[:3])}): {last}")


def _tar_members(archive: Path, spec: SourceSpec) -> Iterator[tuple[str, bytes]]:
    """The selected regular files of a .deb, streamed; links are left out."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for info in tar:
                name = info.name.removeprefix("./")
                handle = tar.extractfile(info) if info.isfile() and selected(name, spec) else None
                if handle is not None:
                    yield name, handle.read()
    if process.returncode:
        raise tarfile.TarError("dpkg-deb could not read it")


def _zip_members(archive: Path, spec: SourceSpec) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            if not info.is_dir() and selected(info.filename, spec):
                yield info.filename, bundle.read(info)
