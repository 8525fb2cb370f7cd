"""The settings of the mechanism: how a context is split, compressed and injected.

One frozen dataclass, written to and read from JSON; nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sharedllm.errors import UsageError

POSITIONS = ("chunk", "chunk+inner", "sequence", "none")
INITS = ("copied", "zero")
SEARCHES_BY = ("tokens", "last")
STORED_BITS = (16, 8, 4)


@dataclass(frozen=True)
class SharedConfig:
    """Settings of SharedLLM; every one is saved with the adapter that was trained under it.

    Source of the mechanism: "Stacked from One: Multi-Scale Self-Injection for Context Window
    Extension", arXiv 2603.04759.

    Raises:
        UsageError: a value is out of its range; the sentence names the field.
    """

    injected_layers: int = 16
    """M: how many of the lowest layers read the chunks and take the slots in."""
    skipped_layers: int = 0
    """Of those, how many of the lowest only read: they take nothing in, and nothing of them is kept but what a question is
    compared with."""
    chunk_length: int = 1024
    """C: tokens a chunk."""
    tree_depth: int = 3
    """L: how often a chunk is halved on the way down; it yields L + 1 leaves."""
    slots_per_leaf: int = 32
    """Key/value positions every leaf keeps, at an even stride."""
    fine_chunks: int = 0
    """Chunks that keep every token, whatever the tree says: those nearest to the question, without one the newest."""
    read_chunks: int = 0
    """Chunks taken in: those nearest to the question, without one the newest; the others are left out. 0: all."""
    search_by: str = "tokens"
    """What of a node a question is compared with: all its `tokens`, or its `last` one; see `relevance`."""
    search_layer: int = 4
    """The layer, counted from 0, whose values represent a token; only where `search_by` is `tokens`."""
    search_prior: float = 0.0
    """How much a search counts in attention: the logit of a slot is lowered by this times how much less near to the
    question its part of the text is than the nearest one, in mean cosine of the tokens that ask; see `relevance.priors`."""
    search_words: float = 0.0
    """How much words count, beside nearness, for which parts are quoted and which chunks are read: this times the BM25 of a
    part, as a share of the best part's, is added to its mean cosine; see `words`. The prior of attention goes without."""
    quoted_tokens: int = 0
    """Tokens of the parts nearest to a question that also stand before it in the window, as text; see `quote`."""
    stored_bits: int = 16
    """Bits in which a stored number is kept: 16 (whatever the model computes in), 8 or 4; see `packing`."""
    split_noise: float = 0.05
    """Standard deviation of the split point in training, as a share of the node's length."""
    positions: str = "chunk"
    """Where rotary positions of the slots come from; see `memory.slot_positions`."""
    null_slot: bool = True
    """A learned logit with zero value a head, so that a head may attend to nothing."""
    null_growth: bool = False
    """That logit grows with log(1 + (t / C)^2) of a token t of the window, at a learned rate a head: the
    share of the context falls as the window grows, as it would in one softmax over both. Needs the null slot."""
    moving_query: bool = False
    """Queries move on by 1 / C a token of the window, instead of all standing behind the last chunk."""
    init: str = "copied"
    """`copied`: q and o of the layer with a zero gate a head. `zero`: q copied, o zero, no gate."""

    rank: int = 0
    """0: projections trained whole. Above: the model's own plus a change of this rank, a far smaller adapter."""

    def __post_init__(self) -> None:
        for name, low in (
            ("injected_layers", 1),
            ("skipped_layers", 0),
            ("chunk_length", 2),
            ("tree_depth", 1),
            ("slots_per_leaf", 1),
            ("rank", 0),
            ("fine_chunks", 0),
            ("search_layer", 0),
            ("read_chunks", 0),
            ("quoted_tokens", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {low}.")
        if self.skipped_layers >= self.injected_layers:
            raise UsageError(
                f"skipped_layers is {self.skipped_layers}; it must be below injected_layers, {self.injected_layers}."
            )
        if self.tree_depth >= self.chunk_length.bit_length():
            raise UsageError(
                f"tree_depth {self.tree_depth} cuts a chunk into 2^{self.tree_depth} parts, more than its "
                f"{self.chunk_length} tokens; lower tree_depth or raise chunk_length."
            )
        noise = self.split_noise
        if not isinstance(noise, int | float) or not 0 <= noise < 0.5:
            raise UsageError(f"split_noise is {noise!r}; it must be a number of at least 0 and below 0.5.")
        for name in ("search_prior", "search_words"):
            weight = getattr(self, name)
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < math.inf:
                raise UsageError(f"{name} is {weight!r}; it must be a number of at least 0.")
        for name in ("null_slot", "null_growth", "moving_query"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be true or false.")
        if self.null_growth and not self.null_slot:
            raise UsageError("null_growth is true; it needs null_slot true as well.")
        check_choice("positions", self.positions, POSITIONS)
        check_choice("init", self.init, INITS)
        check_choice("search_by", self.search_by, SEARCHES_BY)
        check_choice("stored_bits", self.stored_bits, STORED_BITS)
        if self.rank and self.init != "copied":
            raise UsageError(
                f"rank is {self.rank}, a change of copied projections; it needs init copied, not {self.init}."
            )

    @classmethod
    def fitting(cls, layers: int, window: int = 8192) -> SharedConfig:
        """What measured best (docs/LOG.md), for a model of so many layers and so many tokens in its window.

        Four fifths of the layers are injected, because heads that copy sit that deep; one chunk keeps every
        token and eight are read; projections are changed at rank 64, numbers stored at 4 bits; the null logit grows;
        the search counts in attention, and words count for what is quoted. A window holds at least four chunks, so that a
        conversation can be folded.
        """
        return cls(
            chunk_length=max(16, min(1024, window // 4)),
            injected_layers=max(1, layers * 4 // 5),
            fine_chunks=1,
            read_chunks=8,
            rank=64,
            stored_bits=4,
            null_growth=True,
            search_prior=40.0,
            search_words=0.1,
            quoted_tokens=256,
        )

    @property
    def branches(self) -> int:
        """How many layers have a branch, and are kept."""
        return self.injected_layers - self.skipped_layers

    @property
    def representing_layer(self) -> int:
        """The layer, counted from 0, whose values represent a token in the search by `tokens`."""
        return min(self.search_layer, self.injected_layers - 1)

    def compared_layer(self, compact: bool) -> int:
        """The layer whose values are kept apart for questions to be compared with, since they are not kept with the slots:
        it is skipped, or a `compact` context keeps few of its tokens. -1: none."""
        apart = self.search_by == "tokens" and (compact or self.representing_layer < self.skipped_layers)
        return self.representing_layer if apart else -1

    @property
    def slots_per_chunk(self) -> int:
        """Slots a full chunk keeps for one question: (L + 1) leaves of `slots_per_leaf`."""
        return (self.tree_depth + 1) * self.slots_per_leaf

    def to_dict(self) -> dict[str, Any]:
        """Every setting by its name, in the order above, as plain values that JSON holds; `from_dict` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SharedConfig:
        """Build from a mapping.

        Raises:
            UsageError: an unknown key (the nearest right name is given) or a value of the wrong type.
        """
        check_keys(values, [f.name for f in dataclasses.fields(cls)], "the configuration")
        return cls(**values)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise one clear sentence when `value` is not among `choices`."""
    choices = list(choices)
    if value not in choices:
        raise UsageError(
            f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}.{nearest(str(value), map(str, choices))}"
        )


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str, within: Iterable[str] = ()) -> None:
    """Raise one clear sentence, with the nearest right name, for the first key of `values` that is not `known`.

    Args:
        within: names of nested settings, with their dots, that may be meant as well.
    """
    known = list(known)
    for key in values:
        if key not in known:
            raise UsageError(f"{where} has no setting named {key!r}.{nearest(str(key), [*known, *within], 0.0)}")


def nearest(word: str, known: Iterable[str], least: float = 0.6) -> str:
    """` Did you mean ...?`: the known word that ends in this one behind a dot, the one whose initials it is (`lr`), or the one
    most like it; nothing where none is as like it as `least`, from 0 (whatever it is) to 1 (the same)."""
    known = list(known)
    short = [name for name in known if name.endswith(f".{word}") or word == "".join(p[:1] for p in name.split("_"))]
    found = short or difflib.get_close_matches(word, known, n=1, cutoff=least)
    return f" Did you mean {found[0]}?" if found else ""
