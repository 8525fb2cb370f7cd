"""The README's measured parts say what the results files say, and its commands exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_come_from_the_results_files():
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "docs/fill_readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in (README, module.CARD.read_text(encoding="utf-8")):
        assert module.filled(page) == page, "run python docs/fill_readme.py"
        assert "Not measured yet" not in page


def test_commands_and_links_exist():
    from sharedllm.cli import app

    known = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    used = set(re.findall(r"^sharedllm ([\w-]+)", README, flags=re.MULTILINE))
    assert used and used <= known
    targets = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{t}:" in makefile for t in targets)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
