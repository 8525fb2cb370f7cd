"""The plain model writes questions and answers about passages it is shown.

The passage stands first in the prompt and what is asked of it after, so that it is read once: both the questions and
the answers go on from its keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharedllm.data.study_filters import first_question
from sharedllm.prompts import Prompt, end_tokens

# What the model is told after the passage, by kind of question. A question must make sense beside the whole document.
INSTRUCTIONS = {
    "fact": (
        "Ask one question about a fact that this text states.",
        "Ask one short question that only this text answers. Write the question alone.",
    ),
    "name": (
        "Ask one question whose answer is a name or a number in this text.",
        "Ask one question that begins with Who, Where, When or Which, and that this text answers.",
    ),
    "definition": (
        "Choose a term that this text explains, and ask what it means.",
        "Ask one question that begins with What is, about something that this text describes.",
    ),
    "purpose": (
        "Ask one question about what something in this text is for.",
        "Ask one question about why something is done or happens in this text.",
    ),
    "manner": (
        "Ask one question that begins with How, and that this text answers.",
        "Ask one question about what happens, or what to do, in a case that this text speaks of.",
    ),
    "summary": (
        "Name the subject of this text in one question that asks what is said about it.",
        "Ask one question that a summary of this text would answer. Name what it is about.",
    ),
}


@dataclass(frozen=True)
class Pair:
    """A question with its answer, and the answer's token ids as the model wrote them, the end included if it ended."""

    kind: str
    question: str
    answer: str
    answer_ids: list[int]


@dataclass(frozen=True)
class Writing:
    """How questions and answers are written.

    Attributes:
        temperature, top_p: of the sampled questions; answers are greedy.
        question_tokens, answer_tokens: most that are written.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    question_tokens: int = 40
    answer_tokens: int = 48


class Author:
    """Writes pairs with a Hugging Face model that nothing is injected into, and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, writing: Writing | None = None) -> None:
        self.model, self.tokenizer, self.writing = model, tokenizer, writing or Writing()
        self.ends = end_tokens(model, tokenizer)

    @torch.no_grad()
    def write(self, passages: Tensor, kinds: Sequence[Sequence[tuple[str, str]]], seed: int) -> list[list[Pair]]:
        """Pairs a passage, a question each; the question is empty where the model wrote none.

        Args:
            passages: token ids [P, T].
            kinds: for each passage the same number of (kind, instruction).
            seed: of the sampling; the same passages, instructions and seed give the same pairs.
        """
        count = len(kinds[0])
        told = [item for of_passage in kinds for item in of_passage]
        prompts = [Prompt(self.tokenizer, instruction).around_text() for _, instruction in told]
        before = torch.tensor(prompts[0][0], dtype=torch.long).expand(len(passages), -1)
        prefix = torch.cat([before, passages], 1).to(self.model.device)
        cache = self.model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(count)
        prefix = prefix.repeat_interleave(count, 0)

        writing = self.writing
        sampled = dict(do_sample=True, temperature=writing.temperature, top_p=writing.top_p, top_k=0)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            asked = self._go_on(prefix, cache, [after for _, after in prompts], writing.question_tokens, **sampled)
        questions = [first_question(self._text(ids)) for ids in asked]
        answered = [i for i, question in enumerate(questions) if question]
        answers: dict[int, list[int]] = {}
        if answered:
            cache.batch_select_indices(torch.tensor(answered, device=prefix.device))
            afters = [Prompt(self.tokenizer, questions[i]).around_text()[1] for i in answered]
            written = self._go_on(prefix[answered], cache, afters, writing.answer_tokens, do_sample=False)
            answers = dict(zip(answered, written, strict=True))
        pairs = [
            Pair(kind, question, self._text(answers.get(i, [])), answers.get(i, []))
            for i, ((kind, _), question) in enumerate(zip(told, questions, strict=True))
        ]
        return [pairs[i : i + count] for i in range(0, len(pairs), count)]

    def _go_on(self, prefix: Tensor, cache: Any, afters: list[list[int]], most: int, **how: Any) -> list[list[int]]:
        """What is written after `prefix` [R, T], whose keys and values are in `cache`, and `afters`, a list a row.

        Shorter lists are padded at the left, between prefix and list, where the mask hides it.
        """
        width = max(map(len, afters))
        ids = torch.zeros(len(afters), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, after in enumerate(afters):
            ids[row, width - len(after) :] = torch.tensor(after)
            mask[row, width - len(after) :] = 1
        ids = torch.cat([prefix, ids.to(prefix.device)], 1)
        mask = torch.cat([torch.ones_like(prefix), mask.to(prefix.device)], 1)
        pad = min(self.ends, default=0)
        out = self.model.generate(
            ids,
            attention_mask=mask,
            past_key_values=copy.deepcopy(cache),  # generate adds to it
            max_new_tokens=most,
            pad_token_id=pad,
            repetition_penalty=1.0,  # whatever the model's own settings say: answers are its likeliest words
            no_repeat_ngram_size=0,
            **how,
        )
        return [self._ended(row) for row in out[:, ids.shape[1] :].tolist()]

    def _ended(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids) - 1)
        return ids[: end + 1]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
