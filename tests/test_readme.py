"""The README's measured parts say what the results files say; `test_docs.py` runs its examples."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = "src/sharedllm/adapters/smollm2-135m-instruct"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def fill(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import fill_readme

    return fill_readme


def test_numbers_come_from_the_results_files(fill):
    for page in (README, *(file.read_text(encoding="utf-8") for file in (fill.CARD, *fill.PAGES))):
        assert fill.filled(page) == page, "run python tools/fill_readme.py"
        assert "Not measured yet" not in page


def row(method: str, length: int, value: float, window: int = 1025, **more: object) -> dict:
    return {
        "metric": "nll", "method": method, "length": length, "targets": 1024, "window": window, "value": value, "samples": 2,
        "sources": ["a.txt", "b.txt"], "starts": [1, 2], "values": [value, value], **more,
    }  # fmt: skip


def measured(by: float, starts: list[int], **more: object) -> list[dict]:
    """What `make measure` leaves: two lengths in a small window and in a large one, gains, and answers."""
    rows = [row("truncate", n, 3.0) for n in (8192, 16384)] + [row("shared", n, 3 - by, **more) for n in (8192, 16384)]
    rows += [row("full", 8192, 2.0), row("truncate", 16384, 2.0, 8192), row("shared", 16384, 2 - by, 7168, **more)]
    rows.append(row("shared", 16384, by, 7168, **more) | {"metric": "nll_gain_over_truncate"})
    answers = {
        "metric": "answered",
        "method": "shared",
        "length": 9,
        "window": 9,
        "value": by,
        "scores": [by],
        "samples": 1,
    }
    return [{**r, "starts": starts} for r in rows] + [answers | more]


def test_one_adapter_is_shown_and_no_length_twice(fill, monkeypatch):
    """Of rows of several adapters those of the last, though passages are others by now; without digests the last rows."""
    window = row("truncate", 16384, 2.5, 7168)
    for before, after in (({"adapter_weights": "one"}, {"adapter_weights": "two"}), ({}, {})):
        old, new = measured(0.125, [1, 2], **before), measured(0.5, [7, 9], **after)
        monkeypatch.setattr(fill, "rows", lambda name, found=[*old, window, *new]: found)
        block = fill.adapter_block()
        assert "0.125" not in block and "12 %" not in block
        assert "| all | 4 |" not in block and "| all | 2 | +0.500 [+0.500, +0.500] | 50 % [50, 50] |" in block
        lengths = [line.split(" | ")[0] for line in block.splitlines() if line.startswith(("| 8,192", "| 16,384"))]
        assert lengths == ["| 8,192", "| 16,384", "| 16,384"], "a small window and a large one"
        assert "| 16,384 | 7,168 | 2 | +0.500 [+0.500, +0.500] | not measured |" in block, (
            "that window alone: other passages"
        )
        assert block.count("Of fewer than five passages the interval is their range.") == 3
    old = [*measured(0.125, [1, 2], adapter_weights="one"), row("retrieval", 8192, 1.0, adapter_weights="one")]
    monkeypatch.setattr(fill, "rows", lambda name: [*old, row("shared", 8192, 1.0, adapter_weights="two")])
    assert {r["method"] for r in fill.last_adapter()} == {"truncate", "full", "shared"}
    assert [r["value"] for r in fill.last_adapter() if r["method"] == "shared"] == [1.0]


def test_a_gain_of_best_use_is_one_over_a_larger_window(fill):
    found = measured(0.5, [1, 2])
    (gain,) = (r for r in found if r["metric"] == "nll_gain_over_truncate")
    said = {w: fill.best_use([*found, {**gain, "truncate_window": w}]) for w in (7168, 8192)}
    assert all("| 16,384 | 7,168 | 2 | +0.500" in text for text in said.values())
    smaller = [{**r, "truncate_window": 7168} if r is gain else r for r in found]
    assert fill.best_use(smaller) == "", "beside a row of the larger window that it is not of"


def test_a_share_of_the_gap_has_an_interval_of_gains_and_gaps_together(fill):
    assert fill.share_of_gap([0.1, 0.3, 0.2], [0.2, 0.4, 0.4]) == "60 % [50, 75]"
    assert fill.share_of_gap([0.1], [0.2]) == "50 %", "of one passage there is none"
    assert fill.share_of_gap([0.1, 0.1], [0.3, -0.1]) == "100 %", "nor where the gap may be none"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_what_was_measured_of_the_adapter_before_is_put_aside(tmp_path):
    """Under the name of its run, behind what is there already; not where the same adapter is shipped again."""
    shipped, run, results = (tmp_path / name for name in (SHIPPED, "runs/new/adapter", "docs/results"))
    for folder, name in ((shipped, "old"), (run, "new")):
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(name)
        about = {"about": {"recipe": {"output": f"runs/{name}", "data": "data"}}}
        (folder / "adapter_config.json").write_text(json.dumps(about, indent=2))
    results.mkdir(parents=True)
    (results / "old-adapter.jsonl").write_text('{"before": 1}\n')
    (results / "adapter.jsonl").write_text('{"of": "old"}\n')
    ship = ["make", "-f", ROOT / "Makefile", "ship", "RUN=runs/new"]
    for left in (False, True):
        subprocess.run(ship, cwd=tmp_path, check=True, capture_output=True)
        assert (results / "old-adapter.jsonl").read_text() == '{"before": 1}\n{"of": "old"}\n'
        assert (shipped / "adapter_model.safetensors").read_text() == "new"
        assert (results / "adapter.jsonl").is_file() == left
        (results / "adapter.jsonl").write_text('{"of": "new"}\n')


def test_every_length_is_measured_with_both_windows(fill):
    """Of the adapter that ships: a small window at every length, and a large one beyond the model's own on enough passages."""
    found = [row for row in fill.last_adapter() if row["method"] == "shared" and row["metric"].startswith("nll_gain")]
    small = {row["length"] for row in found if row["window"] == row["targets"] + 1}
    assert small >= {n * 1024 for n in (8, 16, 32, 64, 128)}
    large = [row for row in found if row["window"] > row["targets"] + 1 and row["length"] > 8192]
    assert {row["length"] for row in large} >= {n * 1024 for n in (16, 32, 64, 128)}
    assert all(row["samples"] >= 12 for row in large), "their gains are small"
