"""A training recipe: one dataclass, read from YAML with `key=value` overrides."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sharedllm.config import SharedConfig, check_choice, check_keys
from sharedllm.data.needles import DISTRACTED
from sharedllm.data.no_repeats import NoRepeats
from sharedllm.data.vocabulary import most_facts
from sharedllm.errors import UsageError

TRAINABLE = ("shared", "encoder-decoder")
"""What can be trained."""
PARALLEL = ("samples", "chunks")
RANGES: list[tuple[tuple[str, ...], Callable[[float], bool], str]] = [
    (("accumulate", "reuse", "windows", "checkpoint_every"), lambda x: x >= 1, "be at least 1"),
    (("window_tokens",), lambda x: x >= 2, "be at least 2, one to predict the other"),
    (("seed", "warmup_steps", "recompute_from"), lambda x: 0 <= x < math.inf, "be at least 0"),
    (("validate_every", "validate_samples", "weight_decay", "minutes"), lambda x: 0 <= x < math.inf, "be at least 0"),
    (("learning_rate", "gate_learning_rate", "clip_norm"), lambda x: 0 < x < math.inf, "be a number above 0"),
    (("distill", "quoted", "final_rate"), lambda x: 0 <= x <= 1, "lie between 0 and 1"),
    (("distracted", "few_wordings", "whole_answers"), lambda x: 0 <= x <= 1, "lie between 0 and 1"),
]
"""Settings, what each of them fulfils, and how the sentence for one that does not goes on: it must ..."""


@dataclass(frozen=True)
class Recipe:
    """Everything a training run depends on besides the model and the data.

    Raises:
        UsageError: a value is out of range, or of no effect; the sentence names the field.
    """

    output: str
    """Folder of the run: checkpoints, metrics and the finished adapter."""
    data: str = "data/text"
    """Folder written by `sharedllm data build`."""
    method: str = "shared"
    """What is trained: the injection of `shared`, or the cross-attention of `encoder-decoder`."""
    model: str | None = None
    """As `--model`; none is the default model."""
    start: str | None = None
    """Adapter folder whose weights training starts from, or `default` for the one that ships for the model; none starts from
    the model's own."""
    keep_start: float = 0.0
    """Share of the start's weights in the finished adapter, a mean of both (WiSE-FT, arXiv 2109.01903): what was learnt
    last is kept nearly whole, and what it cost is mostly given back. 0: the trained weights as they are."""
    steps: int = 400
    """0: only write the adapter of `start` with this recipe's settings."""
    seed: int = 0
    learning_rate: float = 1e-3
    """Of norms and projections, at the top of the cosine."""
    gate_learning_rate: float = 1e-2
    """Of the gates and null logits."""
    warmup_steps: int = 20
    final_rate: float = 0.1
    """Where the cosine ends, as a share of the learning rate."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    """Samples of a step, whose gradients are averaged: each counts the same, whatever it predicts."""
    context_chunks: list[int] = field(default_factory=lambda: [4, 7])
    """Fewest and most chunks of context of a sample."""
    reuse: int = 1
    """Steps in a row that read the same context, encoded once, with other windows or questions. Where a sample has fewer of
    them, as one with a long window has, each step draws its own of that kind."""
    windows: int = 4
    """Windows trained on in each sample, at most one after each chunk; each sees the chunks before it."""
    window_tokens: int = 384
    long_windows: float = 0.0
    """Share of continuation samples with one long window instead, after the fewest chunks of context."""
    long_window_tokens: int = 4096
    warm_tokens: int = 0
    """Most tokens before the predicted ones in the windows of `warm`, at least 1: a window has 64 of them or more, or all where
    they are fewer. With `window_tokens` at most a chunk."""
    warm: float = 0.0
    """Share of the other continuation samples whose windows begin with tokens that are not predicted; by the last of these the
    context is searched."""
    distill: float = 0.0
    """Share of the loss of continuations that is the KL divergence from the same model reading context and window itself."""
    needles: float = 0.0
    """Share of samples that hide facts in the text and ask for them."""
    needle_windows: int = 8
    """Facts hidden and asked for in such a sample, or as many of them as its context has room for."""
    pairs: float = 0.0
    """Share of those that are values of keys, beside other keys."""
    hops: float = 0.0
    """Share of those that follow from two or three statements together."""
    counts: float = 0.0
    """Share of those that are how often something is said."""
    distracted: float = DISTRACTED
    """Share of hidden facts beside which a statement like theirs is hidden that does not answer the question."""
    few_wordings: float = 0.0
    """Share of samples of hidden facts that say them in two to five wordings alone, so that most have others like them."""
    whole_answers: float = 0.25
    """Share of hidden facts whose answer is predicted from its first word on, not only after the words that lead to it."""
    questions: float = 0.0
    """Share of samples that ask what functions do and terms mean, where the text says so."""
    question_windows: int = 12
    """Such questions asked at most in a sample."""
    quoted: float = 0.0
    """Share of the windows that ask in which the passages nearest to the question stand before it, as
    `config.quoted_tokens` has them stand when a question is answered."""
    recompute_from: int = 0
    """Batches of at least so many tokens have every layer computed again in the backward pass instead of keeping what it
    needs there: less memory, a third more time. 0: never."""
    study: float = 0.0
    """Share of samples with questions that the model wrote itself about a passage and answered shown that passage; the
    loss is then the KL divergence alone, from the plain model shown the passage to the one that reads the compressed text."""
    study_data: str | None = None
    """Folder written by `sharedllm data study` with this model, of `data`. At most `question_windows` pairs a sample."""
    parallel: str = "samples"
    """What several processes share of a step: `samples`, each a whole one, or the `chunks` and windows of every sample."""
    minutes: float = 0.0
    """A run that is not finished after so many, the loading of model and data among them, ends after the step it is at with
    a checkpoint, or sooner where a validation is due for which too few are left; the same command goes on. 0: no limit."""
    checkpoint_every: int = 50
    validate_every: int = 50
    validate_samples: int = 8
    device: str | None = None
    dtype: str | None = None
    config: SharedConfig = field(default_factory=SharedConfig)

    def __post_init__(self) -> None:
        check_choice("method", self.method, TRAINABLE)
        check_choice("parallel", self.parallel, PARALLEL)
        for names, fits, words in RANGES:
            for name in names:
                if not fits(getattr(self, name)):
                    raise UsageError(f"{name} is {getattr(self, name)}; it must {words}.")
        for holds, sentence in (*self._together(), *self._of_effect()):
            if not holds:
                raise UsageError(sentence)

    def _together(self) -> list[tuple[bool, str]]:
        """What must hold of settings together, each with the sentence for where it does not."""
        shares, kinds = (self.needles, self.questions, self.study), (self.pairs, self.hops, self.counts)
        windows, pair = (self.needle_windows, self.question_windows), self.context_chunks
        long = f"window_tokens is {self.window_tokens}"
        if self.warm_tokens:
            long = f"window_tokens and warm_tokens are {self.window_tokens} and {self.warm_tokens}"
        return [
            (
                self.steps >= (0 if self.start else 1),
                f"steps is {self.steps}; it must be at least 1, or 0 with an adapter to start from.",
            ),
            (
                0 <= self.keep_start < 1 and (not self.keep_start or self.start is not None),
                f"keep_start is {self.keep_start}; it must be at least 0 and below 1, and needs an adapter to start from.",
            ),
            (
                not self.quoted or self.config.quoted_tokens > 0,
                f"quoted is {self.quoted}, but config.quoted_tokens is 0; say how many are quoted.",
            ),
            (
                0 <= min(shares) <= sum(shares) <= 1,
                "needles, questions and study are shares of the samples; together they must lie between 0 and 1.",
            ),
            (
                not self.study or self.study_data is not None,
                f"study is {self.study}, but study_data names no folder; give one written by `sharedllm data study`.",
            ),
            (1 <= min(windows) <= max(windows) <= 64, "needle_windows and question_windows must lie between 1 and 64."),
            (
                not self.needles or self.needle_windows * self.reuse <= most_facts(),
                f"needle_windows * reuse is {self.needle_windows * self.reuse}, facts drawn for one context; it must be at most "
                f"{most_facts()}.",
            ),
            (
                0 <= min(kinds) <= sum(kinds) <= 1,
                "pairs, hops and counts are shares of the hidden facts; together they must lie between 0 and 1.",
            ),
            (
                0 <= self.long_windows <= 1 and self.long_window_tokens >= 2,
                "long_windows must lie between 0 and 1, long_window_tokens must be at least 2.",
            ),
            (
                0 <= self.warm <= 1 and self.warm_tokens >= (1 if self.warm else 0),
                "warm must lie between 0 and 1, and needs warm_tokens of at least 1.",
            ),
            (
                len(pair) == 2 and 1 <= pair[0] <= pair[1],
                f"context_chunks is {pair}; give the fewest and the most, such as [4, 7].",
            ),
            (
                self.window_tokens + self.warm_tokens <= self.config.chunk_length,
                f"{long}, more than a chunk of {self.config.chunk_length} tokens.",
            ),
        ]

    def _of_effect(self) -> list[tuple[bool, str]]:
        """What must hold so that each setting changes something under the others, with the sentence for where it does not."""
        return [
            (
                not self.quoted or self.method == "shared",
                f"quoted is {self.quoted}, but {self.method} quotes nothing; set quoted=0.",
            ),
            (
                not self.quoted or self.needles + self.questions + self.study > 0,
                f"quoted is {self.quoted}, but no sample asks anything; set quoted=0, or needles, questions or study.",
            ),
            (
                not self.distill or self.needles + self.study < 1,
                f"distill is {self.distill}, but all samples ask; set distill=0, or lower needles and study.",
            ),
            (
                not self.warm_tokens or self.warm > 0,
                f"warm_tokens is {self.warm_tokens}, but warm is 0; set warm_tokens=0, or warm.",
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_recipe(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file, or one of the shipped ones by its name.

    Args:
        overrides: `key=value`, dots for nested settings (`config.injected_layers=8`); values are YAML.

    Raises:
        UsageError: no such file, broken YAML, a key given twice, an unknown one (with the nearest right name), or a wrong type.
    """
    path = Path(file)
    if not path.is_file():
        shipped = Path(__file__).parent.parent / "recipes" / f"{file}.yaml"
        if not shipped.is_file():
            raise UsageError(f"there is no recipe {file}; give a YAML file or the name of a shipped recipe.")
        path = shipped
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=NoRepeats)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"the recipe {path} is not a mapping of settings.")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} is not an override; write key=value.")
        try:
            _set(values, key.strip().split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise UsageError(f"{override!r} is not an override; its value is no YAML.") from error
    return recipe_from_dict(values, str(path))


def recipe_from_dict(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """Build a recipe from plain values, checking names and types."""
    checked = _checked(Recipe, values, where)
    if isinstance(checked.get("config"), dict):
        checked["config"] = SharedConfig(**_checked(SharedConfig, checked["config"], f"{where}, config"))
    if "output" not in checked:
        raise UsageError(f"{where} names no output folder; add output=FOLDER.")
    return Recipe(**checked)


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{name} is a single value; it has no setting {path[-1]}.")
        values = inner
    values[path[-1]] = value


def _checked(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values with known names and right types; whole numbers become floats where floats are meant."""
    hints = typing.get_type_hints(cls)
    nested = [f"config.{f.name}" for f in dataclasses.fields(SharedConfig)] if cls is Recipe else []
    check_keys(values, hints, where, nested)
    checked = {}
    for name, value in values.items():
        hint = hints[name]
        if hint is SharedConfig and isinstance(value, dict | SharedConfig):
            checked[name] = value
            continue
        if hint is float and isinstance(value, str):
            value = _number(value)  # YAML reads 1e-3 as text
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        allowed = typing.get_args(hint) if type(None) in typing.get_args(hint) else (typing.get_origin(hint) or hint,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise UsageError(f"{where}: {name} is {value!r}; expected {_type_name(hint)}.")
        if hint == list[int] and not all(isinstance(v, int) for v in value):
            raise UsageError(f"{where}: {name} is {value!r}; expected a list of whole numbers.")
        checked[name] = value
    return checked


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint).replace("None", "null"))
