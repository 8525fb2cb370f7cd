"""Which way of ranking spans brings a question's answer among the first few hundred tokens of a very long text?

Nothing is trained. One text of 131,072 tokens: the Jargon File of `sharedllm eval real` and as much of a manual, with facts
hidden in it; asked about are the facts, the manual's own definitions (drawn by rule), and the Jargon File by hand. For each
way the share of answers that begin among the first 256, 512 and 1,024 tokens that it ranks. Run after `make texts`:
`python tools/probes/ranking.py data/heldout/python-library.txt > docs/results/probe-ranking.jsonl` (10 minutes on two cores).

Ways: `even` is what ships: of each span the mean over the question's tokens of the nearest cosine. `power` weights a token by
the power p of what its nearest span exceeds the mean over spans by. `whitened` turns the representations by the inverse root of
their covariance to the power a first (arXiv 2103.15316). `bm25` is over token ids. `fused` adds the reciprocal ranks of two (k = 60);
`+ w bm25/max` adds w times BM25 as a share of the best span's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.context import Context
from sharedllm.evaluate import needle, questions, real
from sharedllm.prompts import Prompt
from sharedllm.relevance import Nearness, asked, near_parts, represented
from sharedllm.tree import placed, tree_borders
from sharedllm.words import Words

LENGTH, MANY = 131072, 24
FIRST = (256, 512, 1024)
Way = Callable[[Tensor, Tensor], Tensor]
"""From representations of a question's tokens [Q, R] and their ids [Q] to how near each span is, [N]."""


class Index:
    """The finest spans of a text, as they are compared."""

    def __init__(self, llm: SharedLLM, context: Context) -> None:
        self.blocks, config = context.blocks, llm.config
        self.borders = [tree_borders(block.lengths, config.tree_depth) for block in self.blocks]
        found = [represented(block, config) for block in self.blocks]
        self.reps, self.masks = [rep for rep, _ in found], [mask for _, mask in found]
        every = torch.cat([rep[mask] for rep, mask in found])
        self.mean = every.mean(0)
        values, vectors = torch.linalg.eigh((every - self.mean).T @ (every - self.mean) / len(every))
        self._values, self._vectors = values.clamp(min=values.max() * 1e-4), vectors
        self.ids, self.lengths = context.ids, [block.lengths for block in self.blocks]
        self.spans = placed(self.lengths, self.borders).tolist()

    def whitening(self, power: float) -> Tensor:
        """[R, R]; the identity for 0."""
        return (self._vectors * self._values.pow(-power / 2)) @ self._vectors.T

    def cosines(self, question_QR: Tensor, turn_RR: Tensor) -> Tensor:
        """Of each span to each token of the question, [N, Q]."""
        question, spans = F.normalize((question_QR.float() - self.mean) @ turn_RR, dim=1), []
        for block, rep, mask, borders in zip(self.blocks, self.reps, self.masks, self.borders, strict=True):
            cosines = (F.normalize((rep - self.mean) @ turn_RR, dim=2) @ question.T).masked_fill(~mask[..., None], -1.0)
            spans.append(Nearness(block.compared_tokens, cosines, "tokens").spans(borders).flatten(0, 1))
        return torch.cat(spans)

    def words(self, asking: Tensor) -> Tensor:
        """BM25 of each span as a share of the best one's, [N]."""
        shares = Words(self.ids, asking).shares(self.lengths, self.borders)
        return torch.cat([some.flatten() for some in shares])


def even(cosines_NQ: Tensor, power: float = 0.0) -> Tensor:
    """As `relevance.near_parts`, and of two that are equally near the one that is by itself first."""
    weight = (cosines_NQ.amax(0) - cosines_NQ.mean(0)).clamp(min=0).pow(power)
    weighted = cosines_NQ * weight / weight.mean()
    return near_parts([weighted[:, None]])[0][:, 0] + 1e-4 * weighted.mean(1)


def fused(*scores: Tensor) -> Tensor:
    ranks = [score.argsort(descending=True).argsort().float() for score in scores]
    return torch.stack([1 / (60 + rank) for rank in ranks]).sum(0)


def ways(index: Index) -> dict[str, Way]:
    plain = index.whitening(0)
    found: dict[str, Way] = {"bm25": lambda q, ids: index.words(ids)}
    for power in (0.0, 1.0, 2.0):
        for a in (0.0, 0.5, 1.0):
            turn = index.whitening(a)
            found[f"power {power:g}, whitened {a:g}"] = lambda q, ids, t=turn, p=power: even(index.cosines(q, t), p)
    found["fused bm25 and even"] = lambda q, ids: fused(index.words(ids), even(index.cosines(q, plain)))
    half = index.whitening(0.5)
    found["fused bm25 and power 1, whitened 0.5"] = lambda q, ids: fused(
        index.words(ids), even(index.cosines(q, half), 1)
    )
    for power, a in ((0.0, 0.0), (1.0, 0.5), (2.0, 0.5)):
        turn = index.whitening(a)
        for w in (0.05, 0.1, 0.2, 0.4):
            found[f"power {power:g}, whitened {a:g} + {w} bm25/max"] = lambda q, ids, t=turn, p=power, w=w: (
                even(index.cosines(q, t), p) + w * index.words(ids)
            )
    return found


def first_of(index: Index, scores: Tensor, place: int) -> int:
    """How many tokens are ranked before the span that holds a token of the text, or its neighbours."""
    before = 0
    for i in scores.argsort(descending=True).tolist():
        start, end = index.spans[i]
        if start <= place < end:
            return before
        before += end - start
    return before


def moved(place: int, haystack: needle.Haystack) -> int:
    """Where a token of a text is after needles were put into it."""
    for hidden in haystack.hidden:
        place += hidden.tokens if hidden.start <= place else 0
    return place


def examined(llm: SharedLLM, file: Path) -> tuple[Tensor, dict[str, list[tuple[Prompt, int]]]]:
    """The text and, of each kind, questions with the token where what answers them begins."""
    by_hand = real.as_text(llm, real.load(), 32)
    manual = llm.reader.token_ids(file.read_text(encoding="utf-8")).long()
    (drawn,) = questions.examine([(file.name, manual)], LENGTH - len(by_hand.ids) - 2048, MANY, MANY, llm.tokenizer, 32)
    (haystack,) = needle.build_haystacks([(file.name, drawn.ids)], len(drawn.ids), MANY, MANY, 0, llm.reader.token_ids)
    text, start = torch.cat([by_hand.ids, haystack.ids]), len(by_hand.ids)
    facts = [(Prompt(llm.tokenizer, h.needle.question), start + h.start) for h in haystack.hidden]
    return text, {
        "by hand": [(q.prompt, q.start) for q in by_hand.questions if q.start is not None],
        "drawn": [(q.prompt, start + moved(q.start, haystack)) for q in drawn.questions if q.start is not None],
        "facts": facts,
    }


@torch.no_grad()
def main(file: Path) -> None:
    llm = SharedLLM.from_pretrained()
    text, kinds = examined(llm, file)
    context = llm.read(text)
    index = Index(llm, context)
    for name, way in ways(index).items():
        for kind, some in kinds.items():
            before = []
            for prompt, place in some:
                ids, mask = torch.tensor([prompt.alone()]), prompt.question_mask()
                (question,) = asked(llm.lower, llm.config, ids.to(llm.device), question_mask=mask)
                before.append(first_of(index, way(question.float(), ids[mask.bool()]), place))
            shares = {str(n): round(sum(b < n for b in before) / len(before), 3) for n in FIRST}
            print(json.dumps({"way": name, "kind": kind, "questions": len(some), "first": shares}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
