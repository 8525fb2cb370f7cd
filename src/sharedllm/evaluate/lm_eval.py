"""The model `sharedllm` of lm-evaluation-harness, so that any of its tasks runs with a compressed past.

    sharedllm lm-eval --model sharedllm --model_args window=1024 --tasks ruler
    lm_eval.simple_evaluate(model="sharedllm", ...)        # in Python, after importing this module

A request that fits the model's positions is the harness' own affair (its `hf` model, with nothing injected). Of a
longer one the newest `window` tokens stay as they are and all before them is compressed, where `hf` would cut it off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from sharedllm.branch import Memory
from sharedllm.config import check_keys
from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.model import SharedLLM
from sharedllm.relevance import ASKING_TOKENS

PASSED_ON = ("max_batch_size", "add_bos_token", "prefix_token_id", "chat_template_args")
SETTINGS = ("model", "pretrained", "adapter", "window", "max_length", "device", "dtype", "batch_size", *PASSED_ON)
Item = TypeVar("Item")
Result = TypeVar("Result")
Scored = tuple[float, bool]
"""Nats of a continuation (negative or zero), and whether greedy decoding would give it."""
Request = tuple[Any, list[int], list[int]]
"""The texts (None for a piece of a longer one), token ids of the context, token ids of the continuation."""


@register_model("sharedllm")
class HarnessModel(HFLM):
    """The harness' Hugging Face model with an injection.

    Args:
        model, pretrained: either name, as `SharedLLM.from_pretrained` takes it; None for the default model.
        adapter, device, dtype: as there.
        window: newest tokens that the model sees itself when a request does not fit; fewer where a continuation
            or an answer needs the room.
        max_length: tokens above which a request is compressed; None: the positions the model was trained for.
        others: those in `PASSED_ON`, with the harness' own meaning.
    Raises:
        UsageError: an unknown setting, a window out of range, or no such model or adapter.
    """

    def __init__(
        self,
        model: Any = None,
        pretrained: Any = None,
        adapter: str = "default",
        window: int = 1024,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        check_keys(others, SETTINGS, "model_args")
        given = model if model is not None else pretrained
        self.llm = (
            given if isinstance(given, SharedLLM) else SharedLLM.from_pretrained(given, adapter, None, device, dtype)
        )
        longest = max_length or self.llm.window
        if not 1 <= window <= longest <= self.llm.window:
            raise UsageError(
                f"window is {window} and max_length {longest}; give 1 <= window <= max_length <= {self.llm.window}, "
                "the positions of the model."
            )
        super().__init__(
            pretrained=self.llm.model,
            tokenizer=self.llm.tokenizer,
            max_length=longest,
            batch_size=batch_size,
            **others,
        )
        self.window = window
        self._read = self.llm.reader.new_context()

    def get_model_info(self) -> dict[str, Any]:
        """What the harness' results say of the model: its own account, and how it was given the past."""
        about = {"adapter": self.llm.adapter, "window": self.window, **self.llm.config.to_dict()}
        about |= {"quoted_tokens": 0, "searched_by": ASKING_TOKENS}  # a request does not say which of its tokens ask
        return {**super().get_model_info(), "sharedllm": about}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts; of a longer one the first `max_length` tokens plainly, then a window at a time.

        As in the harness' own rolling windows, each starts from one token of the one before; here it also takes in
        everything before, compressed.
        """

        def fits(request: Any) -> bool:
            return len(self.tok_encode(request.args[0])) <= self.max_length

        def plain(short: list[Any]) -> list[float]:
            return list(super(HarnessModel, self).loglikelihood_rolling(short, disable_tqdm))

        return _routed(requests, fits, plain, lambda long: [self._rolled(request.args[0]) for request in long])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts generated until a stop sequence; the context of a longer prompt is searched once, by its last tokens."""

        def fits(request: Any) -> bool:
            prompt, arguments = request.args
            room = normalize_gen_kwargs(arguments, self.max_gen_toks)["max_gen_toks"]
            return len(self.tok_encode(prompt)) + room <= self.max_length

        def plain(short: list[Any]) -> list[str]:
            return list(super(HarnessModel, self).generate_until(short, disable_tqdm))

        def compressed(long: list[Any]) -> list[str]:
            order = sorted(range(len(long)), key=lambda i: long[i].args[0])  # prompts on one text follow each other
            answers = {i: self._generated(*long[i].args) for i in order}
            return [answers[i] for i in range(len(long))]

        return _routed(requests, fits, plain, compressed)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Scored]:
        """Score continuations of contexts, both as token ids."""

        longest: dict[tuple[int, ...], int] = {}  # continuations of one context are compared: all are scored in one way
        for _, context, continuation in requests:
            longest[tuple(context)] = max(longest.get(tuple(context), 0), len(continuation))

        def fits(request: Request) -> bool:
            context = request[1]
            return len(context) + longest[tuple(context)] <= self.max_length + 1  # the last token is only predicted

        def plain(short: list[Request]) -> list[Scored]:
            return list(super(HarnessModel, self)._loglikelihood_tokens(short, disable_tqdm, override_bs))

        return _routed(requests, fits, plain, self._scored)

    def _scored(self, requests: Sequence[Request]) -> list[Scored]:
        """Score what does not fit; the continuations of one context share its memory and are batched."""
        size = self.batch_size if isinstance(self.batch_size, int) else 1
        scored: dict[int, Scored] = {}
        order = sorted(range(len(requests)), key=lambda i: requests[i][1])
        for context, group in groupby(order, key=lambda i: requests[i][1]):
            members = list(group)
            kept = self._kept(1 - max(len(requests[i][2]) for i in members))
            memory = self._recall(context[:-kept], context[-kept:], "query")
            for at in range(0, len(members), size):
                batch = members[at : at + size]
                cut = [(requests[i][0], context[-kept:], requests[i][2]) for i in batch]
                scored.update(zip(batch, self._within(memory, cut), strict=True))
        return [scored[i] for i in range(len(requests))]

    def _rolled(self, text: str) -> float:
        """Nats of one text longer than `max_length`."""
        ids = self.tok_encode(text)
        total = self._within(None, [(None, [self.prefix_token_id], ids[: self.max_length])])[0][0]
        for start in range(self.max_length, len(ids), self.window):
            # Not searched by the window: it holds the tokens to be predicted.
            memory = self._recall(ids[: start - 1], ids[start - 1 : start], "later")
            piece = (None, ids[start - 1 : start], ids[start : start + self.window])
            total += self._within(memory, [piece])[0][0]
        self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return total

    def _within(self, memory: Memory | None, requests: list[Request]) -> list[Scored]:
        """The harness' own scoring of one batch that fits the window, with the memory taken in."""
        with self.llm.injection.reading(memory):
            return list(super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=len(requests)))

    def _generated(self, prompt: str, arguments: dict[str, Any]) -> str:
        """What is generated after one prompt that does not fit."""
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(arguments, self.max_gen_toks))
        until = handle_stop_sequences(kwargs.pop("until"), eos=self.tok_decode(self.eot_token_id, False))
        new = kwargs.pop("max_gen_toks")
        ids = self.tok_encode(prompt)
        kept = self._kept(-new)
        window = torch.tensor([ids[-kept:]], device=self.device)
        with self.llm.injection.reading(self._recall(ids[:-kept], ids[-kept:], "query")):
            out = self._model_generate(
                context=window, max_length=kept + new, stop=until, attention_mask=torch.ones_like(window), **kwargs
            )
        answer = postprocess_generated_text(self.tok_decode(out[0, kept:].tolist()), until, None)
        self.cache_hook.add_partial("generate_until", (prompt, arguments), answer)
        return answer

    def _kept(self, room: int) -> int:
        """Newest tokens of a context that stay uncompressed where `max_length + room` positions are left for it."""
        kept = min(self.window, self.max_length + room)
        if kept < 1:
            raise UsageError(
                f"a continuation or an answer of {-room:,} tokens leaves no room for its context in a model of "
                f"{self.max_length:,} positions; lower max_gen_toks, or take a task with shorter ones."
            )
        return kept

    def _recall(self, past: list[int], window: list[int], search: str) -> Memory | None:
        """The memory that one window takes in of its past."""
        return self.llm.recall(self._context(past), torch.tensor([window], device=self.device), search=search)

    def _context(self, past: list[int]) -> Context:
        """A past, read; complete chunks that it begins with like the past before are not read again."""
        before, C = self._read.ids.tolist(), self.llm.config.chunk_length
        same = next(
            (i for i, (a, b) in enumerate(zip(before, past, strict=False)) if a != b), min(len(before), len(past))
        )
        context = self._read.first(same // C)
        context.append(past[context.tokens :])
        if context.encoded_tokens < context.tokens:  # short enough for the window, but the window holds other tokens
            self.llm.reader.encode(context)
        self._read = context
        return context


def _routed(
    items: Sequence[Item],
    fits: Callable[[Item], bool],
    plain: Callable[[list[Item]], list[Result]],
    compressed: Callable[[list[Item]], list[Result]],
) -> list[Result]:
    """Results in the order of `items`: `plain` of those that fit, `compressed` of the others."""
    short = [fits(item) for item in items]
    results: dict[int, Result] = {}
    for wanted, function in ((True, plain), (False, compressed)):
        places = [i for i, one in enumerate(short) if one is wanted]
        if places:
            results.update(zip(places, function([items[i] for i in places]), strict=True))
    return [results[i] for i in range(len(items))]
