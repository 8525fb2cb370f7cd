"""Writes the measured parts of README.md, the adapter's card and two pages of docs/ from docs/results: run `python tools/fill_readme.py`.

Numbers have one home, the results files; a test says when the README is behind them.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from fill_goals import ROWS as SPEED
from fill_goals import short_table
from ray_table import ray_block, search_block
from report_table import NOT_MEASURED, THEIR_RANGE, interval, same_passages, searched_before
from serving_table import load_block

from sharedllm.evaluate.results import read_rows
from sharedllm.evaluate.statistics import bootstrap_ratio, bounds
from sharedllm.plot.lines import PLAIN
from sharedllm.plot.perplexity import FEW

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
RETRIEVED = "retrieval: the same passages as text, nothing compressed"
UNIT = ("metric", "method", "length", "sources", "starts")
PAGES = (DOCS / "SERVE.md", DOCS / "distributed/ray.md")
CARD = DOCS.parent / "src/sharedllm/adapters/smollm2-135m-instruct/README.md"


def rows(name: str) -> list[dict[str, Any]]:
    file = DOCS / "results" / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def demo_block() -> str:
    found = rows("demo.jsonl")
    if not found:
        return "Not measured yet."
    row = found[-1]
    per = {
        k: sum(q[k] for q in row["questions"]) / len(row["questions"]) for k in ("search_seconds", "generate_seconds")
    }
    lines = [
        "| | |",
        "| --- | --- |",
        f"| read | {row['context_tokens']:,} tokens, {row['context_tokens'] / row['window']:.0f} times the model's window, in {row['encode_seconds']:.0f} s ({row['tokens_a_second']:,.0f} tokens/s, {row['dtype']}) |",
        f"| kept for any later question | {row['bytes_kept'] / 1e6:,.0f} MB; the model's full key/value cache would take {row['bytes_full_cache'] / 1e6:,.0f} MB |",
        f"| attended to for one question | {row['slots']:,} slots a layer, {row['bytes_one_question'] / 1e6:,.0f} MB, and {row['quoted_tokens']} quoted tokens, {row['bytes_quoted'] / 1e6:,.0f} MB |",
        f"| {row['passages']} passages deep in the text | {row['nll_without']:.3f} nats a token without the context, {row['nll_with']:.3f} with it: gain {row['nll_gain']:.3f} [{row['nll_gain_low']:.3f}, {row['nll_gain_high']:.3f}] |",
        f"| a question | {per['search_seconds']:.2f} s to search, {per['generate_seconds']:.1f} s to generate |",
        f"| peak memory, all of it | {row['peak_memory_bytes'] / 1e6:,.0f} MB (torch and the model included) |",
        "",
    ]
    for q in row["questions"]:
        verdict = "right" if q["right"] else "wrong: expected " + " or ".join(q["expected"])
        lines.append(f"- **{q['question']}** {' '.join(q['answer'].split())} *({verdict})*")
    return "\n".join(lines)


def gains_by_text(ours: dict[str, Any], alone: dict[str, Any]) -> dict[str, list[float]]:
    """Paired gains in nats of each text's passages, and of all under `all`."""
    gains: dict[str, list[float]] = {"all": []}
    for source, a, b in zip(ours["sources"], alone["values"], ours["values"], strict=True):
        for name in (source.removesuffix(".txt"), "all"):
            gains.setdefault(name, []).append(a - b)
    return gains


def last_adapter() -> list[dict[str, Any]]:
    """Rows of the adapter that the last row of `shared` is of, as far as rows say whose weights they are of, and of the model
    alone; of what was measured again the last."""
    found = rows("adapter.jsonl")
    said = [r["adapter_weights"] for r in found if r["method"] == "shared" and "adapter_weights" in r]
    last: dict[str, dict[str, Any]] = {}
    for r in (r for r in found if r["value"] is not None):
        if not said or r["method"] in PLAIN or r.get("adapter_weights") == said[-1]:
            seen = ("window", "targets") if "targets" in r else ()  # of an answer it is only what was used
            unit = json.dumps([r.get(name) for name in (*UNIT, *seen)])
            last.pop(unit, None)
            last[unit] = r
    return list(last.values())


def adapter_block() -> str:
    """Tables of the shipped adapter: by kind of text, by length, with a large window, retrieval."""
    found = last_adapter()
    blocks = [
        by_text(found),
        in_warm_windows(found),
        by_length(found),
        best_use(found),
        needles(found),
        questions(found),
        written(found),
    ]
    return "\n\n".join(block for block in blocks if block) or "Not measured yet."


def beside_full(found: list[dict[str, Any]], warm: bool) -> dict[str, dict[str, Any]]:
    """Rows of likelihood by method, of the passages and the window that `full` was measured with last, ours among them; none
    where there are no such. `warm`: where the window holds text before what is scored."""
    nll = [r for r in found if r["metric"] == "nll" and (r["window"] > r["targets"] + 1) == warm]
    for whole in (r for r in reversed(nll) if r["method"] == "full"):
        same = {r["method"]: r for r in nll if passages(r) == passages(whole) and r["window"] == whole["window"]}
        if {"truncate", "shared"} <= same.keys():
            return same
    return {}


def by_text(found: list[dict[str, Any]]) -> str:
    """Gains at the length that `full` was measured at, on the passages it was measured on."""
    same = beside_full(found, warm=False)
    if not same:
        return ""
    alone, ours = same["truncate"], same["shared"]
    gaps = gains_by_text(same["full"], alone)
    lines = [
        f"**What the compressed context is worth.** Nats a token of the last {ours['targets']:,} of {ours['length']:,} tokens, in texts from sources never "
        "trained on, with a window of as many: paired gain over the window alone, and its share of what the same model gains by reading all "
        "tokens itself, both with 95 % bootstrap interval.",
        "",
        "| text | passages | gain | share of the gap |",
        "| --- | --- | --- | --- |",
    ]
    by_name = gains_by_text(ours, alone)
    for name, gains in by_name.items():
        lines.append(f"| {name} | {len(gains)} | {interval(gains)} | {share_of_gap(gains, gaps[name])} |")
    return "\n".join([*lines, *few([len(gains) for gains in by_name.values()])])


def in_warm_windows(found: list[dict[str, Any]]) -> str:
    """The same where the window holds text before what is scored."""
    same = beside_full(found, warm=True)
    if not same:
        return ""
    gains, gaps = (gains_by_text(same[name], same["truncate"])["all"] for name in ("shared", "full"))
    window, targets = same["full"]["window"], same["full"]["targets"]
    return (
        f"Where a window of {window:,} holds at least {window - targets:,} tokens of text before each scored one (its last {targets:,} are scored), the gain is "
        f"{interval(gains)}, {share_of_gap(gains, gaps)} of that of all tokens, over {len(gains)} passages."
    )


def share_of_gap(gains: list[float], gaps: list[float]) -> str:
    """What passages gain together, as a share of their gaps, with its interval where there is one."""
    said, (low, high) = f"{100 * sum(gains) / sum(gaps):.0f} %", bootstrap_ratio(gains, gaps)
    return f"{said} [{100 * low:.0f}, {100 * high:.0f}]" if len(gains) > 1 and high < math.inf else said


def by_length(found: list[dict[str, Any]]) -> str:
    """The same last tokens with more and more context before them."""
    groups: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for r in found:
        if r["metric"] == "nll" and r["method"] in ("shared", "truncate") and r["window"] <= r["targets"] + 1:
            stretches = json.dumps([r["sources"], r["starts"]])
            groups[stretches] = by_method = groups.pop(stretches, {})  # what was measured last stands last
            by_method.setdefault(r["method"], {})[r["length"]] = r
    both = ((by.get("shared", {}), by.get("truncate", {})) for by in reversed(groups.values()))
    ours, alone = next(((a, b) for a, b in both if len(a.keys() & b.keys()) > 1), ({}, {}))
    if not ours:
        return ""
    lengths = sorted(ours.keys() & alone.keys())
    first = ours[lengths[0]]
    lines = [
        f"**Longer than anything trained on.** The same {first['samples']} stretches of {first['targets']:,} tokens with more and more before them; trained "
        "on 8,192 tokens. Without a question the model attends to the newest eight chunks, so what lies further back neither helps nor hurts.",
        "",
        "| all tokens | window alone, nats | with the context, nats | gain |",
        "| --- | --- | --- | --- |",
    ]
    for n in lengths:
        a, b = ours[n], alone[n]
        gain = interval([y - x for x, y in zip(a["values"], b["values"], strict=True)])
        lines.append(f"| {n:,} | {b['value']:.3f} | {a['value']:.3f} | {gain} |")
    return "\n".join([*lines, *few([first["samples"]])])


def best_use(found: list[dict[str, Any]]) -> str:
    """A large window and the rest compressed, against all positions of the model, and against that window alone."""
    of_shared = [r for r in found if r["metric"] == "nll_gain_over_truncate" and r["method"] == "shared"]
    nll = [r for r in found if r["metric"] == "nll"]
    plain = [r for r in nll if r["method"] == "truncate"]
    larger = [(r, w) for r in of_shared if (w := truncate_window(r, plain)) > r["window"]]
    gains = {(r["window"], r["length"]): r for r, w in larger if r["window"] > r["targets"] + 1}
    if not gains:
        return ""
    whole = max(w for _, w in larger)
    lines = [
        f"**What a user gains.** A large window and the rest compressed, against the model's own {whole:,} positions, all used, and against that "
        "window without the rest.",
        "",
        "| all tokens | window | passages | gain over the plain model | over the window alone |",
        "| --- | --- | --- | --- | --- |",
    ]
    for _, r in sorted(gains.items()):
        same = [x for x in nll if (x["sources"], x["starts"], x["window"]) == (r["sources"], r["starts"], r["window"])]
        alone = next((x["values"] for x in same if x["method"] == "truncate"), None)
        ours = next((x["values"] for x in same if x["method"] == "shared" and x["length"] == r["length"]), None)
        over = NOT_MEASURED if None in (alone, ours) else interval([a - b for a, b in zip(alone, ours, strict=True)])
        lines.append(f"| {r['length']:,} | {r['window']:,} | {r['samples']} | {interval(r['values'])} | {over} |")
    before = [f"{n:,}" for (_, n), r in sorted(gains.items()) if searched_before({**r, "method": "shared"})]
    said = ["", f"At {', '.join(dict.fromkeys(before))} tokens measured by an older search."] if before else []
    return "\n".join([*lines, *few([r["samples"] for r in gains.values()]), *said])


def truncate_window(gain: dict[str, Any], plain: list[dict[str, Any]]) -> int:
    """The window that `truncate` had in a paired difference; where its row does not say it, the largest on the same passages."""
    largest = max((row["window"] for row in plain if same_passages(row, gain)), default=0)
    return int(gain.get("truncate_window", largest))


def needles(found: list[dict[str, Any]]) -> str:
    asked = {(r["method"], r["length"]): r for r in found if r["metric"] == "found"}
    lengths = sorted({n for _, n in asked})
    if not lengths:
        return ""
    methods = [m for m in ("shared", "retrieval", "passage", "truncate", "full") if any(name == m for name, _ in asked)]
    named = {
        "retrieval": RETRIEVED,
        "passage": "the model shown the right 1,024 tokens",
        "truncate": "the newest tokens alone",
    }
    lines = [
        "**Finding a fact.** A sentence with a number, a name or a colour hidden in the text, in wordings, places and names that training never "
        "used; share of questions answered exactly, with 95 % interval.",
        "",
        "| tokens | questions | " + " | ".join(named.get(m, m) for m in methods) + " |",
        "| --- " * (len(methods) + 2) + "|",
    ]
    for n in lengths:
        row = next(asked[m, n] for m in methods if (m, n) in asked)
        shares = [share(asked[m, n]) if (m, n) in asked else NOT_MEASURED for m in methods]
        lines.append(f"| {n:,} | {asked_of(row)} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def questions(found: list[dict[str, Any]]) -> str:
    asked = {(r["method"], r["length"]): r for r in found if r["metric"] == "f1"}
    lines = [
        "**Questions about real text.** What a function does, what a term means, drawn by rule from the documents; token F1 of the answer.",
        "",
        f"| tokens | questions | shared | {RETRIEVED} | the model shown the right 1,024 tokens | ours, as a share of that |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for n in sorted({n for method, n in asked if method == "shared"}):
        ours, found_alone, right = (asked.get((method, n)) for method in ("shared", "retrieval", "passage"))
        others = [f1(row) if row else NOT_MEASURED for row in (found_alone, right)]
        share_of = f"{100 * ours['value'] / right['value']:.0f} %" if right else NOT_MEASURED
        lines.append(f"| {n:,} | {asked_of(ours)} | {f1(ours)} | {' | '.join(others)} | {share_of} |")
    return "\n".join(lines) if asked else ""


def asked_of(row: dict[str, Any]) -> str:
    """How many questions on how many texts: those on one text have it in common what is easy to take for what."""
    texts = len(row["sources"])
    return f"{row['samples']} on {texts} text{'s' if texts > 1 else ''}"


def f1(row: dict[str, Any]) -> str:
    low, high = bounds(row["scores"], most=1.0)
    return f"{row['value']:.2f} [{low:.2f}, {high:.2f}]"


def written(found: list[dict[str, Any]]) -> str:
    """Questions written by hand about the text that ships."""
    asked = {r["method"]: r for r in found if r["metric"] == "answered"}
    if "shared" not in asked:
        return ""
    ours = asked["shared"]
    named = {
        "shared": "shared",
        "retrieval": RETRIEVED,
        "passage": "the model shown the right 1,024 tokens",
        "truncate": f"the newest {asked.get('truncate', ours)['window']:,} tokens alone",
    }
    lines = [
        f"**Questions written by hand** about {ours['length']:,} tokens of the Jargon File, which ships (`sharedllm eval real`); share of {ours['samples']} answers that have the right words in them, with 95 % interval.",
        "",
        "| | answered |",
        "| --- | --- |",
    ]
    for method in (m for m in named if m in asked):
        lines.append(f"| {named[method]} | {share(asked[method])} |")
    return "\n".join(lines)


def no_harm() -> str:
    """What the adapter changes where it is not wanted."""
    found = rows("no-harm.jsonl")
    if not found:
        return ""
    row = found[-1]
    changed = max(row["largest_difference_of_logits"], row["largest_difference_after_detach"])
    return (
        f"**Where there is nothing to attend to.** With no context, or with a text that fits the window, the model is the plain one: logits of {row['tokens']} tokens of "
        f"{row['answers']} texts differ by {changed:g} at most, also once the adapter is taken off, and {row['answers_equal']} of {row['answers']} answers are the same ([row](docs/results/no-harm.jsonl))."
    )


def share(row: dict[str, Any]) -> str:
    low, high = bounds(row["scores"], most=1.0)
    return f"{100 * row['value']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def headline() -> str:
    """What a reader should know first, in one paragraph."""
    asked = {r["method"]: r for r in last_adapter() if r["metric"] == "answered"}
    sooner = [
        r for r in rows("bench.jsonl") if r["metric"] == "first_token_speed_over_full" and r["method"] == "shared"
    ]
    at = [r for r in sooner if r["length"] == 32 * 1024 and r["value"]]
    at_8k = [r for r in sooner if r["length"] == 8 * 1024 and r["value"]]
    if not {"shared", "retrieval", "passage"} <= set(asked) or not (at and at_8k):
        return "Not measured yet."
    ours, found, right = (f"{100 * asked[m]['value']:.0f} %" for m in ("shared", "retrieval", "passage"))
    return (
        f"Measured with the default model of 135 million weights on two cores: of {asked['shared']['samples']} questions written by hand about "
        f"{asked['shared']['length']:,} tokens **{ours}** are answered; {found} where the same passages are retrieved as text and nothing is compressed, "
        f"{right} where the plain model is shown the right 1,024 tokens. The first token of an answer comes **{at[-1]['value']:.1f} times sooner** than with full "
        f"attention about 32,768 tokens (too many for this model to make sense of with it), and **{at_8k[-1]['value']:.1f} times** about 8,192, its own positions; a further question starts in a "
        "second. [What falls short](#what-works-and-what-does-not-yet)."
    )


def before() -> str:
    """What it needs, and what to expect of it."""
    demo, asked = rows("demo.jsonl")[-1:], [r for r in last_adapter() if r["metric"] == "answered"]
    ours = [r for r in asked if r["method"] == "shared"]
    if not (demo and ours):
        return "Not measured yet."
    row, answers = demo[0], ours[-1]
    return (
        f"**Before you start.** Python 3.11 or later, 3 GB of disk and {math.ceil(row['peak_memory_bytes'] / 1e9)} GB of memory. Two cores read about "
        f"{round(row['tokens_a_second'], -1):,.0f} tokens a second: {row['context_tokens'] / 1000:.0f} thousand tokens, some 300 pages, take "
        f"{row['encode_seconds'] / 60:.0f} minutes and {row['bytes_kept'] / 1e9:.1f} GB of disk; `sharedllm encode --dry-run` says what your text takes. From the default "
        f"model expect short answers to questions of fact: of {answers['samples']} questions about {answers['length']:,} tokens it answered "
        f"{100 * answers['value']:.0f} % rightly. It was not trained to summarise or to count."
    )


def passages(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["length"], row["sources"], row["starts"]


def few(passages: list[int]) -> list[str]:
    """What stands under a table of which some rows have few passages."""
    return ["", THEIR_RANGE] if min(passages) < FEW else []


def filled(text: str) -> str:
    blocks = {
        "headline": headline(),
        "before": before(),
        "demo": demo_block(),
        "adapter": "\n\n".join(filter(None, (adapter_block(), no_harm()))),
    }
    blocks |= {"goals": short_table(read_rows(SPEED)), "load": load_block(rows("serving.jsonl"))}
    blocks |= {"ray": ray_block(rows("ray-speed.jsonl")), "search": search_block(rows("library-search.jsonl"))}
    for name, block in blocks.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    for page in (README, CARD, *PAGES):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
