"""The README's measured parts say what the results files say; `test_docs.py` runs its examples."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_come_from_the_results_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("fill_readme", ROOT / "tools/fill_readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in (README, *(file.read_text(encoding="utf-8") for file in (module.CARD, *module.PAGES))):
        assert module.filled(page) == page, "run python tools/fill_readme.py"
        assert "Not measured yet" not in page
