"""The README's measured parts say what the results files say; `test_docs.py` runs its examples."""

from __future__ import annotations

import json
import re
import shlex
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


@pytest.fixture
def tables(fill):
    import adapter_tables

    return adapter_tables


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
        assert lengths == ["| 16,384"], "a large window; the small one has a sentence"
        assert "With 8,192 and 16,384 tokens up to the end of the same 2 stretches" in block
        assert "the gain over the window alone is +0.500 [+0.500, +0.500] at each." in block
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


def test_a_share_of_the_gap_has_an_interval_of_gains_and_gaps_together(tables):
    assert tables.as_share([0.1, 0.3, 0.2], [0.2, 0.4, 0.4]) == "60 % [50, 75]"
    assert tables.as_share([0.1], [0.2]) == "50 %", "of one passage there is none"
    assert tables.as_share([0.1, 0.1], [0.3, -0.1]) == "100 %", "nor where the gap may be none"


def test_a_share_of_the_right_passages_answers_is_paired_by_question(tables):
    def answers(method: str, scores: list[float]) -> dict:
        about = {"metric": "f1", "method": method, "length": 9, "samples": len(scores), "sources": ["a"]}
        return {**about, "value": sum(scores) / len(scores), "scores": scores}

    both = [answers("shared", [0.4, 0.6]), answers("passage", [0.2, 0.2])]
    assert tables.questions(both).endswith("| 250 % [200, 300] |")
    assert tables.questions(both[:1]).endswith("| not measured |")


def test_gains_at_other_lengths_are_said_where_they_differ(tables):
    found = [row("truncate", n, 3.0) for n in (8192, 16384)] + [row("shared", 8192, 2.5), row("shared", 16384, 2.25)]
    assert "goes from +0.500 [+0.500, +0.500] to +0.750 [+0.750, +0.750]" in tables.by_length(found)


SETTINGS = {
    "model": "SmolLM2-135M-Instruct", "injected_layers": 24, "chunk_length": 1024, "tree_depth": 3, "slots_per_leaf": 32,
    "fine_chunks": 1, "read_chunks": 8,
}  # fmt: skip


def test_the_first_table_says_what_an_equal_window_leaves_out(tables):
    """The slots beside it, and what as many tokens in a window are worth, where that was measured on the same passages."""
    found = [row("truncate", 8192, 3.0), row("shared", 8192, 2.5, **SETTINGS), row("full", 8192, 2.0)]
    said = tables.by_text(found)
    assert "sees 1,025 tokens; `shared` sees them too and attends to 1,791 slots besides" in said
    assert "in 24 of the model's 30 layers." in said and "uncompressed" not in said
    control = row("truncate", 8192, 2.75, 2816)
    with_it = tables.by_text([*found, control])
    assert "a window of 2,816 of the plain model: gain +0.250 [+0.250, +0.250], 25 % [25, 25] of the gap." in with_it
    assert tables.by_text([*found, {**control, "starts": [3, 4]}]) == said
    longer = {**row("shared", 131072, 2.5, **SETTINGS), "fine_chunks": 0}
    assert [tables.slots(r) for r in (longer, {**longer, "fine_chunks": 1}, found[0])] == [1024, 1919, None]
    assert tables.slots({**longer, "slots": 900}) == 900, "what was counted as it was measured"


def test_make_measure_gives_the_plain_model_as_many_tokens_on_the_same_passages(fill, tables):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    recipe = re.search(r"^measure:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    first, control = (shlex.split(line) for line in recipe[1].splitlines()[:2])
    at = first.index("--methods"), control.index("--methods")
    assert first[: at[0]] == control[: at[1]] and first[at[0] + 2 :] == control[at[1] + 4 :], "but for the window"
    ours = tables.beside_full(fill.last_adapter(), warm=False)["shared"]
    assert control[at[1] : at[1] + 4] == ["--methods", "truncate", "--window", str(ours["window"] + tables.slots(ours))]


def test_the_headline_has_the_rows_of_most_rounds(fill, monkeypatch):
    """Of the machine that was measured last, and says which figures are of one round."""

    def ratio(which: str, length: int, value: float, samples: int, ours: float = 1.0, other: float = 1.0) -> dict:
        about = dict.fromkeys(("model", "adapter", "dtype", "device", "processor"), "tiny")
        found = {
            "method": "shared",
            "metric": f"{which}_speed_over_full",
            "length": length,
            "value": value,
            "samples": samples,
        }
        return {**about, "threads": 2, **found, "ours": ours, "other": other}

    first, again = "first_token", "second_question"
    bench = [
        {**ratio(first, 8192, 99.0, 9), "threads": 8}, ratio(first, 8192, 3.09, 3), ratio(first, 8192, 2.86, 1),
        ratio(first, 32768, 9.58, 1), ratio(again, 8192, 0.41, 3, 0.69, 0.28), ratio(again, 32768, 1.0, 1, 0.85, 0.86),
    ]  # fmt: skip
    answered = {"metric": "answered", "length": 9, "window": 9, "value": 0.5, "samples": 2}
    answers = [{**answered, "method": method} for method in ("shared", "retrieval", "passage")]
    monkeypatch.setattr(fill, "rows", lambda name: bench if name == "bench.jsonl" else answers)
    said = fill.headline()
    assert (
        "**9.6 times sooner**" in said
        and "of with it; one round), and **3.1 times** about 8,192, its own positions. " in said
    )
    further = "0.69 s against 0.28 s about 8,192 tokens and 0.85 s against 0.86 s about 32,768 tokens, one round. ["
    assert f"starts no sooner than with full attention, whose cache is kept: {further}" in said
    bench.append(ratio(again, 8192, 2.0, 3, 0.5, 1.0))
    assert "no sooner" not in fill.headline()


def test_the_link_to_the_full_report_says_whose_it_is(fill, monkeypatch, tmp_path):
    """Inside a line; as long as the last row of a figure is of an adapter that ships no longer."""
    import fill_goals

    inside = "the report<!-- report --> of old<!-- /report -->.\n"
    assert fill.filled(inside) == f"the report<!-- report -->{fill.report_of()}<!-- /report -->.\n"
    measured = tmp_path / "adapter.jsonl"
    measured.write_text(json.dumps({"method": "shared", "adapter": "first", "adapter_weights": "now"}) + "\n")
    monkeypatch.setattr(fill_goals, "MEASURED", measured)
    before = {"task": "needle", "metric": "found", "method": "shared", "adapter": "first", "length": 9, "value": 0.5}
    now = {**before, "adapter_weights": "now"}
    for found, said in (([before], ", measured with an earlier adapter"), ([before, now], ""), ([], "")):
        monkeypatch.setattr(fill, "rows", lambda name, found=found: found)
        assert fill.report_of() == said


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
