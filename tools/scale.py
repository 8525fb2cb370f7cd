"""What reading long texts costs by length, model and hardware, counted: run `python tools/scale.py`.

Writes docs/results/scale.jsonl, the tables of docs/SCALE.md between their marks and docs/figures/scale.svg. Counts are those
of `scale_counts.py`; what is assumed stands in the tables below, what was measured comes from docs/results/demo.jsonl and,
where it is there, bench.jsonl. No model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scale_counts import METHODS, Cost, Shape, cost, forward, pairs, slots, taking_in
from scale_library import Library, Parts, simulate
from transformers import LlamaConfig

from sharedllm.branch import WIDER
from sharedllm.config import SharedConfig
from sharedllm.methods.estimate import cache_bytes
from sharedllm.methods.streaming import Streaming

Row = dict[str, Any]
DOCS = Path(__file__).parent.parent / "docs"
PAGE, RESULTS, FIGURE = DOCS / "SCALE.md", DOCS / "results/scale.jsonl", DOCS / "figures/scale.svg"


@dataclass(frozen=True)
class Hardware:
    """Published peaks, and the share of them that is assumed to be reached."""

    name: str
    operations: float
    """A second, bfloat16, dense."""
    bandwidth: float
    """Bytes a second of its memory."""
    memory: float
    """Bytes."""
    used_operations: float
    used_bandwidth: float
    source: str


DATASHEET = "NVIDIA H100 Tensor Core GPU datasheet, SXM: half of the 1,979 teraFLOPS with sparsity, 3.35 TB/s, 80 GB"
HARDWARE = (
    Hardware("one H100", 989.5e12, 3.35e12, 80e9, 0.4, 0.6, DATASHEET),
    Hardware("eight H100", 8 * 989.5e12, 8 * 3.35e12, 8 * 80e9, 0.3, 0.5, f"eight times the {DATASHEET}"),
)
UNITS = {"kept": "_bytes", "attended": "_bytes", **dict.fromkeys(("read", "search", "token"), "_operations")}
CORES = "two cores"  # their rate is measured
LENGTHS = (2**17, 2**20, 10 * 2**20)
ASKED = 128  # tokens of question and answer that a new token attends to besides the text
WORKERS = (8, 64, 1000)
LIBRARY = Library()
READERS = ((0, CORES), (0, "one H100"), (1, "one H100"), (2, "eight H100"))  # model and hardware of a worker


def models(dtype: torch.dtype = torch.bfloat16) -> list[Shape]:
    """Shapes as their authors published them."""
    sizes = {
        "SmolLM2-135M": (49152, 576, 1536, 30, 9, 3, 8192),
        "Llama-2-7B-like": (32000, 4096, 11008, 32, 32, 32, 4096),
        "Llama-3-70B-like": (128256, 8192, 28672, 80, 64, 8, 8192),
    }
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings",
    )  # fmt: skip
    given: dict[str, dict[str, Any]] = {n: dict(zip(names, size, strict=True)) for n, size in sizes.items()}
    return [Shape(name, LlamaConfig(**size), dtype) for name, size in given.items()]


def rows_of(name: str) -> list[Row]:
    file = DOCS / "results" / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def streaming_window(shape: Shape) -> int:
    """Sinks and window together are the positions that the model was trained with."""
    return shape.parts.window - Streaming(shape, 1).sinks  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rates:
    """Operations and bytes a second that are reckoned with; None: not measured."""

    operations: float
    bandwidth: float | None


def rates() -> dict[str, Rates]:
    """Of the two cores that `bench` ran on: what reading its longest text came to, and one token of the plain model."""
    shape, rows = models()[0], timed(rows_of("bench.jsonl"))
    longest = max((row for row in rows if row["method"] == "shared"), key=lambda row: row["length"])
    read = cost("shared", shape, longest["length"], settings_of(longest), 1, ASKED).read
    alone = [row["rounds"]["per_token_alone_seconds"] for row in rows]
    bandwidth = shape.weight_bytes / median(s for seconds in alone for s in seconds)
    found = {CORES: Rates(read / longest["read_seconds"], bandwidth)}
    for h in HARDWARE:
        found[h.name] = Rates(h.operations * h.used_operations, h.bandwidth * h.used_bandwidth)
    return found


def demo_rate() -> Rates:
    """Of the two cores that read for the demo and for docs/results/adapter.jsonl."""
    shape, demo = models()[0], rows_of("demo.jsonl")[-1]
    read = cost("shared", shape, demo["context_tokens"], SharedConfig.fitting(shape.layers), 1, ASKED).read
    return Rates(read / demo["encode_seconds"], None)


def timed(rows: list[Row]) -> list[Row]:
    """Rows of `sharedllm bench` with seconds of the default model on two threads in bfloat16."""
    of = {"metric": "seconds_to_first_token", "device": "cpu", "dtype": "bfloat16", "threads": 2}
    return [row for row in rows if row["value"] is not None and of.items() <= row.items() and known(row)]


def known(row: Row) -> bool:
    return row["model"].startswith(models()[0].name) and row["method"] in METHODS


def computed() -> list[Row]:
    """All rows of the results file."""
    reckoned = rates()
    return [*_inputs(reckoned), *_costs(reckoned), *_checks(reckoned), *_library(reckoned)]


def _inputs(reckoned: dict[str, Rates]) -> Iterator[Row]:
    """What is assumed, and what follows of it at once."""
    unknown = {f.name: None for f in fields(Hardware) if f.name not in ("name", "source")}
    cores = {**unknown, "source": "docs/results/bench.jsonl: operations of its longest reading by its seconds"}
    for name, given in ((CORES, cores), *((h.name, asdict(h)) for h in HARDWARE)):
        rate = {f"reckoned_{key}": value for key, value in _rounded(asdict(reckoned[name])).items()}
        yield {"task": "scale-hardware", "hardware": name} | {k: v for k, v in given.items() if k != "name"} | rate
    for shape in models():
        yield {
            "task": "scale-model",
            "model": shape.name,
            **{name: getattr(shape.parts, name) for name in ("heads", "kv_heads", "head_dim", "hidden_size")},
            "layers": shape.layers,
            "injected_layers": SharedConfig.fitting(shape.layers).injected_layers,
            "weight_bytes": shape.weight_bytes,
            "window": streaming_window(shape),
        }
    yield {"task": "scale-library-inputs", **asdict(LIBRARY)}


def _costs(reckoned: dict[str, Rates]) -> Iterator[Row]:
    for shape in models():
        config = SharedConfig.fitting(shape.layers)
        for length in LENGTHS:
            for method in METHODS:
                found = cost(method, shape, length, config, streaming_window(shape), ASKED)
                about = {"task": "scale", "model": shape.name, "length": length, "method": method}
                first = {"first_operations": taking_in(shape, length, config)} if method == "shared" else {}
                yield {**about, **_named(found), **first} | {
                    "seconds": {name: _rounded(seconds(found, rate)) for name, rate in reckoned.items()},
                    "fits": {
                        h.name: {
                            "read": shape.weight_bytes + found.kept <= h.memory,
                            "token": shape.weight_bytes + found.attended <= h.memory,
                        }
                        for h in HARDWARE
                    },
                }


def _named(found: Cost) -> Row:
    return {name + ("" if name.endswith("_bytes") else UNITS[name]): value for name, value in asdict(found).items()}


def seconds(found: Cost, rate: Rates) -> Row:
    """To read; and a new token, whose operations and bytes overlap: the longer of the two."""
    token = None if rate.bandwidth is None else max(found.token / rate.operations, found.token_bytes / rate.bandwidth)
    return {"read": found.read / rate.operations, "token": token}


def _rounded(values: Row) -> Row:
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}


def _checks(reckoned: dict[str, Rates]) -> Iterator[Row]:
    """Predicted and measured, of the demo, of passages that were scored, and of `bench` where it was run."""
    for what, method, length, predicted, measured, unit in (
        *_demo_checks(),
        *_passage_checks(demo_rate()),
        *_bench_checks(reckoned[CORES]),
    ):
        yield {
            "task": "scale-check", "what": what, "method": method, "length": length, "predicted": _figures(predicted),
            "measured": _figures(measured), "unit": unit, "ratio": _figures(predicted / measured),
        }  # fmt: skip


def _figures(x: float) -> float:
    return x if isinstance(x, int) else float(f"{x:.6g}")


Check = tuple[str, str, int, float, float, str]


def _demo_checks() -> Iterator[Check]:
    demo, shape = rows_of("demo.jsonl")[-1], models()[0]
    n, config = demo["context_tokens"], SharedConfig.fitting(shape.layers)
    ours = cost("shared", shape, n, config, streaming_window(shape), ASKED)
    yield "demo: kept", "shared", n, ours.kept, demo["bytes_kept"], "bytes"
    yield "demo: kept a token", "shared", n, ours.kept / n, demo["bytes_kept"] / n, "bytes"
    yield "demo: full key/value cache", "full", n, cache_bytes(shape, n), demo["bytes_full_cache"], "bytes"  # type: ignore[arg-type]
    for slots_found in sorted({q["slots"] for q in demo["questions"]}):
        yield "demo: slots a layer of a question", "shared", n, slots(n, config), slots_found, "slots"
    a_slot = 2 * config.branches * shape.parts.kv_heads * (shape.parts.head_dim + WIDER) * shape.dtype.itemsize
    yield "demo: attended a slot", "shared", n, a_slot, demo["bytes_one_question"] / demo["slots"], "bytes"


def _longer(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether another row is of the same passages with more before them."""
    same = all(row[name] == other[name] for name in ("method", "window", "sources", "starts"))
    return same and other["length"] > row["length"]


def _passage_checks(rate: Rates) -> Iterator[Check]:
    """Seconds a passage of `sharedllm eval perplexity`: reading what is before the window, and scoring the window."""
    shape, found = models()[0], [row for row in rows_of("adapter.jsonl") if row["metric"] == "nll"]
    for row in found:
        if row["method"] in ("shared", "truncate") and any(_longer(row, other) for other in found):
            continue  # read once for all lengths (of `truncate` the same window), which is counted in the longest
        if row["method"] in ("full", "shared", "truncate") and row["dtype"] == "bfloat16":
            n, window = row["length"], row["length"] if row["method"] == "full" else row["window"]
            operations = forward(shape, window, pairs(window)) + 2 * shape.head_weights * (row["targets"] + 1)
            if row["method"] == "shared":
                config = replace(settings_of(row), quoted_tokens=0)  # nothing is quoted where nothing is asked
                one = cost("shared", shape, n - window, config, 1, 0)
                plain = forward(shape, 1, 0) + 2 * shape.head_weights
                operations += one.read + one.search + window * (one.token - plain)
            yield (
                f"the last {row['targets']:,} of a passage scored, window {window:,}",
                row["method"],
                n,
                operations / rate.operations,
                row["seconds"] / row["samples"],
                "s",
            )


def settings_of(row: Row) -> SharedConfig:
    return SharedConfig.from_dict({f.name: row[f.name] for f in fields(SharedConfig) if f.name in row})


def _bench_checks(rate: Rates) -> Iterator[Check]:
    rows = [row for row in rows_of("bench.jsonl") if row["value"] is not None and known(row)]
    for row in rows:
        shape, n, method = models(getattr(torch, row["dtype"]))[0], row["length"], row["method"]
        config = settings_of(row) if method == "shared" else SharedConfig.fitting(shape.layers)
        found = cost(method, shape, n, config, row["window"], ASKED)
        if row["metric"] == "working_peak_bytes":
            if method != "full" or row["kept_bytes"] > row["attended_bytes"]:  # it kept the ids alone once
                yield "bench: kept", method, n, found.kept, row["kept_bytes"], "bytes"
            yield "bench: attended", method, n, found.attended, row["attended_bytes"], "bytes"
    for row in timed(rows):
        n, method = row["length"], row["method"]
        config = settings_of(row) if method == "shared" else SharedConfig.fitting(models()[0].layers)
        expected = seconds(cost(method, models()[0], n, config, row["window"], ASKED), rate)
        # `full` read for every question once, and so in the time to its first token
        measured = max(row["read_seconds"], row["first_token_seconds"]) if method == "full" else row["read_seconds"]
        yield "bench: read", method, n, expected["read"], measured, "s"
        yield "bench: a new token", method, n, expected["token"], row["per_token_seconds"], "s"


def _library(reckoned: dict[str, Rates]) -> Iterator[Row]:
    for number, hardware in READERS:
        shape = models()[number]
        config = SharedConfig.fitting(shape.layers)
        found = cost("shared", shape, LIBRARY.tokens, config, 1, ASKED)
        parts = Parts(found.read / reckoned[hardware].operations, found.kept, shape.weight_bytes)
        for workers in WORKERS:
            whole = _rounded(simulate(LIBRARY, parts, workers))
            yield {"task": "scale-library", "model": shape.name, "hardware": hardware} | whole


def main() -> None:
    import scale_figure
    from scale_tables import blocks

    rows = computed()
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), blocks(rows)), encoding="utf-8")
    scale_figure.save([row for row in rows if row["task"] == "scale"], FIGURE)
    for row in rows:
        if row["task"] == "scale-check":
            print(
                "{what}, {method} at {length:,}: predicted {predicted:,g}, measured {measured:,g} {unit}".format(**row)
            )


def filled(page: str, made: dict[str, str]) -> str:
    """The page with every block between its marks.

    Raises:
        ValueError: the page has no marks for a block.
    """
    for name, block in made.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        found = re.search(marks, page, flags=re.DOTALL)
        if found is None:
            raise ValueError(f"the page has no marks <!-- {name} --> and <!-- /{name} -->.")
        page = f"{page[: found.start()]}{found[1]}{block}\n{found[2]}{page[found.end() :]}"
    return page


if __name__ == "__main__":
    main()
