"""Checks what a built wheel and sdist hold: `python packaging/contents.py dist`, in a checkout.

The wheel must hold the files of src/sharedllm that git knows, no fewer and no more; the sdist what builds and tests it.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SDIST_MB = 15
IN_SDIST = (
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "SECURITY.md",
    "pyproject.toml",
    "tests/conftest.py",
)


def tracked(folder: str) -> set[str]:
    """Files under a folder that git knows, as paths from the root of the checkout."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(listed.stdout.split("\n")) - {""}


def wrong_in_wheel(names: set[str], sources: set[str]) -> list[str]:
    """What is missing from a wheel's names and what has no business there."""
    packed = {name for name in names if ".dist-info/" not in name}
    missing = [f"the wheel lacks {name}" for name in sorted(sources - packed)]
    return missing + [f"the wheel has {name}, which git does not know" for name in sorted(packed - sources)]


def wrong_in_sdist(names: set[str], sources: set[str], size: int) -> list[str]:
    """What is missing from an sdist's names (without its top folder), what is stray, and whether it is too large."""
    wanted = {f"src/{name}" for name in sources} | set(IN_SDIST)
    wrong = [f"the sdist lacks {name}" for name in sorted(wanted - names)]
    wrong += [f"the sdist has {name}" for name in sorted(names) if "__pycache__" in name or name.endswith(".pyc")]
    if size > SDIST_MB * 1_000_000:
        wrong.append(f"the sdist has {size / 1e6:.0f} MB, more than {SDIST_MB}")
    return wrong


def main(folder: Path) -> int:
    """Print what is wrong with the one wheel and the one sdist in a folder; 0 when nothing is."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    sources = {name.removeprefix("src/") for name in tracked("src/sharedllm")}
    with zipfile.ZipFile(wheel) as opened:
        wrong = wrong_in_wheel(set(opened.namelist()), sources)
    with tarfile.open(sdist) as packed:
        names = {member.name.partition("/")[2] for member in packed if member.isfile()}
    wrong += wrong_in_sdist(names, sources, sdist.stat().st_size)
    print("\n".join(wrong) or f"{wheel.name}, {sdist.name}: complete, nothing stray", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
