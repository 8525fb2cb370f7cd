"""Reading one long context with several processes: each encodes its share of the chunks, all get all slots.

A chunk is read on its own, so this is sequence parallelism without attention across the cut: token ids go in, slots come out,
and nothing is exchanged between. Where chunks are read one at a time (CPUs), the result is that of one process bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sharedllm.chunks import AS_SET, Stored
from sharedllm.encoded import LAYERED, MERGED_CHUNKS, Encoded
from sharedllm.processes import Processes
from sharedllm.reader import Reader

ASKED = 2 + len(Stored._fields)  # numbers that say what the others are to read


class ParallelReader(Reader):
    """A reader that all processes call alike: `llm.reader = ParallelReader(llm.reader, processes)`.

    Every process has to read the same texts in the same order.
    """

    def __init__(self, reader: Reader, processes: Processes) -> None:
        super().__init__(reader.lower, reader.config, reader.fingerprint, reader.tokenizer)
        self.processes = processes

    @torch.no_grad()
    def encode_rows(
        self,
        ids_XC: Tensor,
        told: Callable[[int], None] | None = None,
        stored: Stored = AS_SET,
    ) -> Encoded:
        """Encode this process's share of the chunks, and gather those of the others."""
        X, each = len(ids_XC), -(-len(ids_XC) // self.processes.count)
        # All processes encode as many: where chunks run out, the last one again. So what they send has one shape, and they
        # call the model's layers alike, as FSDP needs.
        mine = torch.arange(self.processes.index * each, (self.processes.index + 1) * each).clamp(max=X - 1)
        encoded = gathered(self.processes, super().encode_rows(ids_XC[mine], None, stored))[:X]
        if told is not None:
            told(ids_XC.numel())
        return encoded

    def side_by_side(self, n: int) -> int:
        """The most that all processes have memory for, so that their layers are called equally often."""
        batch = torch.tensor(super().side_by_side(n), device=self.processes.device)
        return int(self.processes.gather(batch).min())

    def step(self, n: int) -> int:
        """All that is read together: parts of it would leave some processes without a chunk."""
        return max(MERGED_CHUNKS, self._together(n))

    def _together(self, n: int) -> int:
        """One each: of their memory the processes would have to agree before every text."""
        return self.processes.count


class LeadingReader(ParallelReader):
    """The main process's: it reads for itself, and the others `follow` until it `ends`.

    Attributes:
        exchanging: whether the others wait for something else than the next text; so it stays where an error ended an
            exchange: they would take the word that ends them for what they wait for, and it is not to be given.
    """

    exchanging = False

    @torch.no_grad()
    def encode_rows(
        self,
        ids_XC: Tensor,
        told: Callable[[int], None] | None = None,
        stored: Stored = AS_SET,
    ) -> Encoded:
        device, self.exchanging = self.processes.device, True
        self.processes.broadcast(torch.tensor([*ids_XC.shape, *stored], device=device))
        self.processes.broadcast(ids_XC.to(device))
        encoded = super().encode_rows(ids_XC, told, stored)
        self.exchanging = False
        return encoded

    def _together(self, n: int) -> int:
        """One each at least, and no more than this process alone has memory for, since all of them get what all have read."""
        return max(self.processes.count, Reader.side_by_side(self, n))

    def end(self) -> None:
        """Let the others go."""
        self.processes.broadcast(torch.zeros(ASKED, dtype=torch.long, device=self.processes.device))


def follow(reader: ParallelReader) -> None:
    """Encode shares of what the main process's `LeadingReader` reads, and keep nothing, until it ends."""
    processes = reader.processes
    while True:
        asked = processes.broadcast(torch.zeros(ASKED, dtype=torch.long, device=processes.device))
        X, n, *stored = asked.tolist()
        if not X:
            return
        ids_XC = processes.broadcast(torch.zeros(X, n, dtype=torch.int32, device=processes.device))
        reader.encode_rows(ids_XC.cpu(), stored=Stored(*map(bool, stored)))


def gathered(processes: Processes, encoded: Encoded) -> Encoded:
    """The chunks of all processes, which have equally many of one stored shape, in the order of the processes.

    All tensors travel as one buffer of bytes.
    """
    fields = vars(encoded)
    sent = torch.cat([t.contiguous().flatten().view(torch.uint8) for t in fields.values()])
    parts = []
    for buffer in processes.gather(sent):
        pieces = buffer.split([t.nbytes for t in fields.values()])
        tensors = (_as(piece, like) for piece, like in zip(pieces, fields.values(), strict=True))
        parts.append(dict(zip(fields, tensors, strict=True)))
    return Encoded(**{n: torch.cat([part[n] for part in parts], dim=int(n in LAYERED)) for n in fields})


def _as(piece: Tensor, like: Tensor) -> Tensor:
    """Bytes as a tensor of the dtype and shape of another; copied, since a piece may begin at an odd address."""
    return piece.clone().view(like.dtype).view(like.shape)
