"""What each process of a launch does in the tests: trains recipes one after the other, reads a context, and notes results.

`accelerate launch -m tests.distributed_worker REQUEST.yaml`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from sharedllm import SharedLLM
from sharedllm.adapter import weights_digest
from sharedllm.errors import SharedLLMError
from sharedllm.parallel import ParallelReader
from sharedllm.processes import Processes
from sharedllm.train.distributed import DistributedTrainer
from sharedllm.train.recipe import recipe_from_dict
from tests.conftest import tokens
from tests.contexts import assert_same_chunks


def main(request: dict[str, Any]) -> None:
    processes = Processes(cpu=True)
    noted: dict[str, Any] = {"train": []}
    for values in request["train"]:
        trainer = DistributedTrainer(recipe_from_dict(values), processes=processes)
        trainer.train()
        noted["train"].append(weights_digest(trainer.module))
        sharded = [p for p in trainer.llm.parts.layers.parameters() if hasattr(p, "to_local")]
        noted["held"] = sum(p.to_local().numel() for p in sharded)
    if "refused" in request:
        try:
            DistributedTrainer(recipe_from_dict(request["refused"]), processes=processes)
        except SharedLLMError as error:
            noted["refused"] = str(error)
    if "read" in request:
        noted["read"] = read(processes, *request["read"])
    Path(request["note"], f"{processes.index}.json").write_text(json.dumps(noted))
    processes.end()


def read(processes: Processes, model: str, adapter: str, chunks: int, ragged: int) -> int:
    """Read a text together and alone, compare all bits, and give the bytes received."""
    llm = SharedLLM.from_pretrained(model, adapter, dtype="float32", device="cpu")
    ids = tokens(chunks * llm.config.chunk_length + ragged)
    alone = llm.read(ids)
    llm.reader = ParallelReader(llm.reader, processes)
    before = processes.received
    told: list[int] = []
    together = llm.read(ids, lambda done, _: told.append(done))
    assert_same_chunks(together, alone)
    assert told[-1] == len(ids) and together.nbytes == alone.nbytes
    return processes.received - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(yaml.safe_load(Path(sys.argv[1]).read_text()))
