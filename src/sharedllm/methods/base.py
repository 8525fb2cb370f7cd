"""The protocol of a method: take a past in, score tokens after it, generate after it, answer a question on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharedllm.errors import UsageError
from sharedllm.methods.estimate import Passes, cache_bytes, forward_bytes, one_pass
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt, not_padding, opening

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[["Method", T], Iterator[R]]


class Method(ABC):
    """One way of using a long past.

    Args:
        llm: the model; methods of other people's use `llm.model` alone.
        window: newest tokens that the model sees itself.

    Attributes:
        spread: does the work of `each` in other processes, where it is set; see `evaluate.spread`.
    """

    name: ClassVar[str]
    reads_once: ClassVar[bool] = False
    """Whether `prepare_tails` reads what the stretches share once."""
    forgets: ClassVar[bool] = False
    """Whether the past before a window changes nothing of what the method scores there."""
    keeps_cache: ClassVar[bool] = False
    """Whether a text that is asked about passes the model once, however many questions follow."""
    longest: int | None = None
    """Tokens of the longest text that it is to be measured on; None: of any that memory holds."""
    spread: Callable[[Method, Work, Sequence[Any]], Iterator[Any]] | None = None
    taken_in: int | None = None
    """Slots a layer that the window scored last took in; None where the method has none."""

    def __init__(self, llm: SharedLLM, window: int) -> None:
        self.llm, self.window = llm, window

    @property
    def limit(self) -> int | None:
        """Most tokens that text, question and answer may have together; None where a text of any length is read."""
        return None

    def each(self, work: Work[T, R], items: Sequence[T]) -> Iterator[R]:
        """All that `work(self, item)` yields, for all items in their order."""
        if self.spread is not None:
            yield from self.spread(self, work, items)
            return
        for item in items:
            yield from work(self, item)

    @abstractmethod
    def prepare(self, past: Tensor) -> Any:
        """Take in the token ids [P] before the window; returns what the other methods need of them."""

    def prepare_to_ask(self, past: Tensor, prompt: Prompt) -> Any:
        """The same of a text [P] that is to be asked about: by `prompt`, and by others that put the same before the text."""
        return self.prepare(past)

    def prepare_tails(self, ids: Tensor, tails: Sequence[tuple[int, int]]) -> Iterator[Any]:
        """What `prepare` gives of several stretches that end differently far before the end of the same tokens.

        Args:
            ids: [P]
            tails: (tokens, before end) of each stretch, the one that starts earliest first.
        """
        for tokens, before in tails:
            end = len(ids) - before
            yield self.prepare(ids[end - tokens : end])

    @abstractmethod
    def score(self, past: Any, window: Tensor, targets: int) -> Tensor:
        """Negative log-likelihood in nats of the last `targets` tokens of `window` [T]; shape [targets].

        What the model itself sees stands behind what the tokenizer puts before a text; see `opened`.
        """

    @abstractmethod
    def generate(self, past: Any, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        """Token ids generated greedily after `window` [T]; shape [new]."""

    @abstractmethod
    def shown(self, past: Any, prompt: Prompt, max_new_tokens: int) -> list[int]:
        """Token ids that the model sees itself when it is asked `prompt`, before it answers."""

    def ask(self, past: Any, prompt: Prompt, max_new_tokens: int) -> Tensor:
        """Token ids answered greedily to `prompt`; shape [new].

        Raises:
            UsageError: the question and an answer of `max_new_tokens` do not fit the window.
        """
        return greedy(self.llm, self.shown(past, prompt, max_new_tokens), prompt, max_new_tokens)

    def positions(self, tokens: int) -> int:
        """Positions of the model's own attention that `tokens` tokens take, the window's among them."""
        return min(tokens, self.window)

    def peak_bytes(self, tokens: int, scored: int = 0) -> int:
        """Memory that a run over `tokens` tokens takes at its peak, counted from shapes, without the model's weights.

        Args:
            scored: tokens whose likelihood is computed; 0: an answer is generated.
        """
        seen = self.positions(tokens)
        return forward_bytes(self.llm, seen, scored) + (0 if scored else cache_bytes(self.llm, seen))

    def reading(self, tokens: int) -> Passes:
        """What `prepare` has to do with so many tokens."""
        return Passes()

    def answering(self, tokens: int) -> Passes:
        """What a window, or a question, has to do where text and window have so many tokens together."""
        return one_pass(self.positions(tokens))

    def added(self) -> list[nn.Module]:
        """The modules whose weights the method adds to the model's."""
        return []

    def kept_bytes(self, past: Any) -> int:
        """Bytes that are kept of a text for any question on it: here its token ids."""
        return int(past.nbytes)

    def attended_bytes(self, past: Any, prompt: Prompt, max_new_tokens: int) -> int:
        """Bytes of keys and values of the text that one question attends to, in all layers."""
        return cache_bytes(self.llm, len(self.shown(past, prompt, max_new_tokens)) - len(prompt.alone()))

    def quality_reason(self) -> str | None:
        """Why scores and answers of this method would say nothing, or None: they do."""
        return None

    def settings(self) -> dict[str, Any]:
        """What a results row says of the method besides its name."""
        return {"window": self.window}

    def rules(self, scored: bool, before: int = 0) -> dict[str, Any]:
        """What a results row says of rules that no setting has: rows measured by older ones are not known again.

        Args:
            scored: whether tokens are scored; otherwise questions are asked.
            before: tokens of the window that stand before the scored ones.
        """
        return {}


def target_nll(logits_BTV: Tensor, ids_BT: Tensor, targets: int) -> Tensor:
    """Nats of each of the last `targets` tokens, given logits of the whole window. [B, targets]."""
    scored = logits_BTV[:, -targets - 1 : -1].float()
    return F.cross_entropy(scored.transpose(1, 2), ids_BT[:, -targets:], reduction="none")


def opening_of(llm: SharedLLM) -> list[int]:
    """Token ids that the tokenizer puts before a text, such as `<s>`; none without a tokenizer."""
    return [] if llm.tokenizer is None else opening(llm.tokenizer)


def opened(llm: SharedLLM, ids: Tensor) -> Tensor:
    """Tokens [T] behind those that the tokenizer puts before a text: models that were trained with them predict badly, some
    nothing, where they are missing. The oldest tokens give way where both together are more than the model's positions, and
    the tokens alone are not.
    """
    first = opening_of(llm)
    over = max(0, len(first) + len(ids) - llm.window) if first and len(ids) <= llm.window else 0
    return torch.cat([ids.new_tensor(first), ids[over:]]) if first else ids


@torch.no_grad()
def plain_nll(llm: SharedLLM, ids: Tensor, targets: int) -> Tensor:
    """The same of the plain model over `ids` [T]; logits are computed for the targets alone."""
    batch = ids[None].to(llm.device)
    logits = llm.model(input_ids=batch, use_cache=False, logits_to_keep=targets + 1).logits
    return target_nll(logits, batch, targets)[0]


def room_in(window: int, question: int, max_new_tokens: int) -> int:
    """Tokens of a text that fit a window beside a question and an answer.

    Raises:
        UsageError: not even those two fit.
    """
    if reason := no_room(window, question, max_new_tokens):
        raise UsageError(f"{reason}.")
    return window - question - max_new_tokens


def no_room(window: int, question: int, max_new_tokens: int) -> str | None:
    """Why a window cannot hold a question and an answer, or None: it can."""
    if question + max_new_tokens <= window:
        return None
    return (
        f"a window of {window} tokens cannot hold the question ({question}) and an answer of "
        f"{max_new_tokens}; raise --window or lower --max-new-tokens"
    )


def new_tokens(output: Tensor, prompt: int) -> Tensor:
    return output[0, prompt:]


def plain_generate(llm: SharedLLM, ids: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
    """Token ids that the plain model adds greedily to `ids` [T], past its trained positions too, where `SharedLLM.generate`
    would compress; shape [new]. `kwargs` go to the model's own `generate`."""
    batch = ids[None].to(llm.device)
    mask = not_padding(llm.model, batch, kwargs)
    out = llm.model.generate(batch, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, **kwargs)
    return new_tokens(out, len(ids))


def greedy(llm: SharedLLM, ids: list[int], prompt: Prompt, max_new_tokens: int) -> Tensor:
    """The same after the ids of a prompt."""
    return plain_generate(llm, torch.tensor(ids), max_new_tokens, pad_token_id=prompt.pad_id)
