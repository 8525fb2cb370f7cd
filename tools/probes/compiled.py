"""Does `torch.compile` make reading or answering faster on this processor?

Eight chunks of 1,024 tokens are read, and 24 tokens of an answer written with 32 thousand tokens of context: plain, with each layer's MLP
compiled, and with whole layers compiled (shapes fixed). What compiling itself takes is timed apart. A layer as a whole does not stop
early at the top (`LowerModel.may_stop`). Needs a C++ compiler. Run
`python tools/probes/compiled.py -o docs/results/probe-compiled.jsonl` (6 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sharedllm import SharedLLM
from sharedllm.hardware import choose_threads, processor_name
from sharedllm.methods.shared import Shared
from sharedllm.prompts import Prompt

CHUNKS, ROUNDS, NEW = 8, 5, 24


def compile_mlps(llm: SharedLLM) -> None:
    for layer in llm.parts.layers:
        layer.mlp.compile(dynamic=False)


def compile_layers(llm: SharedLLM) -> None:
    for layer in llm.parts.layers:
        layer.mlp._compiled_call_impl = None
        layer.compile(dynamic=False)


WAYS: dict[str, Callable[[SharedLLM], None]] = {
    "plain": lambda llm: None,
    "MLPs": compile_mlps,
    "layers": compile_layers,
}


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Of the first time, in which code is compiled, and the median of those after it."""
    took = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return took[0], median(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    args = parser.parse_args()
    torch.set_num_threads(int(choose_threads().value))
    torch._dynamo.config.recompile_limit = 64
    llm = SharedLLM.from_pretrained()
    llm.model.generation_config.eos_token_id = None  # all answers have one length
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, llm.parts.vocab_size, (32 * 1024,), generator=generator, dtype=torch.int32)
    method, prompt = Shared(llm, 1024), Prompt(llm.tokenizer, "Where does the letter come from?")
    context = method.prepare(ids.long())
    chunks = ids[: CHUNKS * 1024].view(CHUNKS, 1024)
    rows: list[dict[str, Any]] = []
    for name, set_up in WAYS.items():
        set_up(llm)
        read_first, read = seconds(lambda: llm.reader.encode_rows(chunks))
        short, long = (seconds(lambda new=new: method.ask(context, prompt, new))[1] for new in (1, NEW))
        rows.append({"compiled": name, "read_seconds": read, "read_tokens_a_second": chunks.numel() / read,
                     "first_read_seconds": read_first, "per_token_seconds": (long - short) / (NEW - 1),
                     "first_token_seconds": short, "dtype": str(llm.dtype), "threads": torch.get_num_threads(),
                     "processor": processor_name(llm.device), "torch": torch.__version__})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
