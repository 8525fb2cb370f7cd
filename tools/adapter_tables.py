"""Tables of what the shipped adapter is worth, from rows of one adapter that `make measure` left; `fill_readme.py` puts them into pages."""

from __future__ import annotations

import json
import math
from typing import Any

from report_table import NOT_MEASURED, THEIR_RANGE, interval, same_passages, searched_before, slots, with_branches

from sharedllm.evaluate.statistics import bootstrap_ratio, bounds
from sharedllm.plot.perplexity import FEW

RETRIEVED = "retrieval: the same passages as text, nothing compressed"


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
        lines.append(f"| {name} | {len(gains)} | {interval(gains)} | {as_share(gains, gaps[name])} |")
    said = " ".join(part for part in (seen(ours), uncompressed(found, ours, alone, gaps["all"])) if part)
    return "\n".join([*lines, *few([len(gains) for gains in by_name.values()]), *(["", said] if said else [])])


def seen(ours: dict[str, Any]) -> str:
    """What the two methods of an equal window see."""
    if (taken := slots(ours)) is None:
        return ""
    return (
        f"In that window the plain model sees {ours['window']:,} tokens; `shared` sees them too and attends to {taken:,} slots besides, in "
        f"{with_branches(ours)}."
    )


def uncompressed(found: list[dict[str, Any]], ours: dict[str, Any], alone: dict[str, Any], gaps: list[float]) -> str:
    """What the plain model gains with as many tokens in its window as `shared` attends to with its slots; nothing where that was
    not measured on the same passages."""
    window = ours["window"] + (slots(ours) or 0)
    plain = [r for r in found if (r["metric"], r["method"], r["window"]) == ("nll", "truncate", window)]
    same = [r for r in plain if window > ours["window"] and passages(r) == passages(ours)]
    if not same:
        return ""
    gains = gains_by_text(same[-1], alone)["all"]
    return (
        f"As many tokens as `shared` attends to in such a layer, uncompressed, in a window of {window:,} of the plain model: gain {interval(gains)}, "
        f"{as_share(gains, gaps)} of the gap."
    )


def in_warm_windows(found: list[dict[str, Any]]) -> str:
    """The same where the window holds text before what is scored."""
    same = beside_full(found, warm=True)
    if not same:
        return ""
    gains, gaps = (gains_by_text(same[name], same["truncate"])["all"] for name in ("shared", "full"))
    window, targets = same["full"]["window"], same["full"]["targets"]
    return (
        f"Where a window of {window:,} holds at least {window - targets:,} tokens of text before each scored one (its last {targets:,} are scored), the gain is "
        f"{interval(gains)}, {as_share(gains, gaps)} of that of all tokens, over {len(gains)} passages."
    )


def gains_by_text(ours: dict[str, Any], alone: dict[str, Any]) -> dict[str, list[float]]:
    """Paired gains in nats of each text's passages, and of all under `all`."""
    gains: dict[str, list[float]] = {"all": []}
    for source, a, b in zip(ours["sources"], alone["values"], ours["values"], strict=True):
        for name in (source.removesuffix(".txt"), "all"):
            gains.setdefault(name, []).append(a - b)
    return gains


def as_share(parts: list[float], wholes: list[float]) -> str:
    """The sum of figures as a share of the sum of others of the same samples, with its interval where there is one."""
    said, (low, high) = f"{100 * sum(parts) / sum(wholes):.0f} %", bootstrap_ratio(parts, wholes)
    return f"{said} [{100 * low:.0f}, {100 * high:.0f}]" if len(parts) > 1 and high < math.inf else said


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
    gains = [interval([y - x for x, y in zip(ours[n]["values"], alone[n]["values"], strict=True)]) for n in lengths]
    same = f"is {gains[0]} at each" if len(set(gains)) == 1 else f"goes from {gains[0]} to {gains[-1]}"
    return " ".join([
        f"**Longer than anything trained on.** With {', '.join(f'{n:,}' for n in lengths[:-1])} and {lengths[-1]:,} tokens up to the end of the same "
        f"{first['samples']} stretches of {first['targets']:,}, trained on 8,192, the gain over the window alone {same}. Without a question the model attends to the "
        "newest eight chunks, so that beyond those it takes in the same at every length: what lies further back neither helps nor hurts.",
        *few([first["samples"]])[1:],
    ])  # fmt: skip


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
        share_of = as_share(ours["scores"], right["scores"]) if right else NOT_MEASURED
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


def share(row: dict[str, Any]) -> str:
    low, high = bounds(row["scores"], most=1.0)
    return f"{100 * row['value']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def passages(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["length"], row["sources"], row["starts"]


def few(passages: list[int]) -> list[str]:
    """What stands under a table of which some rows have few passages."""
    return ["", THEIR_RANGE] if min(passages) < FEW else []
