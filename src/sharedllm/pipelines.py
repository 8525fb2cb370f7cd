"""Questions about texts of any length, called as the pipelines of transformers are.

    ask = sharedllm.pipeline("long-context-question-answering")
    ask(question="Who sends the letter?", context=open("book.txt").read())["answer"]

A text is read once: questions about the same one, now or later, find its context again by a hash of its content.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, Pipeline

from sharedllm.answering import asked_for
from sharedllm.config import check_choice
from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.model import SharedLLM

TASK = "long-context-question-answering"
LOADING = ("config", "device", "dtype", "tokenizer")
RESOLUTION = ("slots_per_leaf", "fine_chunks", "read_chunks", "quoted_tokens")


class LongContextQuestionAnswering(Pipeline):
    """Answers questions about texts of any length; `pipeline` makes one.

    Attributes:
        llm: the model with its adapter.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        adapter: str | Path | None = "default",
        llm: SharedLLM | None = None,
        kept_contexts: int = 8,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            llm: `model` with an adapter attached already; None: `adapter` is attached to it.
            kept_contexts: of how many texts, the last asked about, the contexts stay in memory.
            kwargs: of transformers' `Pipeline`, or what `__call__` takes, for every call.
        """
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)
        self.llm = SharedLLM.from_pretrained(self.model, adapter, tokenizer=tokenizer) if llm is None else llm
        self._contexts: OrderedDict[str, Context] = OrderedDict()
        self._kept_contexts = kept_contexts

    def __call__(
        self,
        inputs: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
        *args: Any,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer one question, or several one after another.

        Args:
            inputs: {"question": ..., "context": ...}, or a list of them; instead of the two below.
            question, context: strings; or lists of them, of one length, or with one text for all questions.
            kwargs: what `SharedLLM.answer` takes (`max_new_tokens`, `read_chunks`, ...), and `passages`: how many of the
                passages read most finely are given.
        Returns:
            A dictionary, or a list of them: answer, seconds (all in all), tokens (of the text), slots, compressed, passages.
        Raises:
            UsageError: a question or a text is missing, or is no string; or what is given instead of them is something else.
        """
        if inputs is None:
            inputs = _pairs(question, context)
        if isinstance(inputs, Mapping):
            return super().__call__(dict(inputs), *args, **kwargs)
        rows = list(inputs) if isinstance(inputs, Iterable) and not isinstance(inputs, str) else [inputs]
        if not all(isinstance(one, Mapping) for one in rows):
            raise UsageError(
                "questions are given by name: question=..., context=...; or as dictionaries with these two, one or a list."
            )
        return [Pipeline.__call__(self, dict(one), *args, **kwargs) for one in rows]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, kwargs, {}

    def preprocess(self, input_: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        """The question with its text's context, which is read if it is not there."""
        started, question, text = time.perf_counter(), input_.get("question"), input_.get("context")
        if not isinstance(question, str) or not isinstance(text, str):
            raise UsageError("a question needs a text; give question and context, both strings.")
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        context = self._contexts.pop(name, None)
        context = self.llm.read(text) if context is None else context
        self._contexts[name] = context
        while len(self._contexts) > self._kept_contexts:
            self._contexts.popitem(last=False)
        return {"question": question, "context": context, "started": started}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        context, question = input_tensors["context"], input_tensors["question"]
        settings = {"max_new_tokens": None, "passages": 3, **forward_parameters}
        passages = settings.pop("passages")
        settings["max_new_tokens"] = asked_for(settings["max_new_tokens"], settings)
        answer = self.llm.answer(context, question, **settings)
        shared = {name: settings[name] for name in ("max_new_tokens", *RESOLUTION) if name in settings}
        read = self.llm.explain(context, question, passages, **shared) if passages else []
        return {**input_tensors, "answer": answer, "passages": read}

    def postprocess(self, model_outputs: Any, **_: Any) -> dict[str, Any]:
        """What the caller is given."""
        found: dict[str, Any] = model_outputs
        answer = found["answer"]
        return {
            "answer": answer.text,
            "seconds": time.perf_counter() - found["started"],
            "tokens": found["context"].tokens,
            "slots": answer.slots,
            "compressed": answer.compressed,
            "passages": [asdict(passage) for passage in found["passages"]],
        }


def pipeline(
    task: str = TASK, model: Any = None, adapter: str | Path | None = "default", **kwargs: Any
) -> LongContextQuestionAnswering:
    """A callable that answers questions about texts of any length.

    Args:
        task: `long-context-question-answering`, the only one.
        model, adapter: as for `SharedLLM.from_pretrained`, or a `SharedLLM`.
        kwargs: more of `SharedLLM.from_pretrained`: config, device, dtype, tokenizer; and what
            `LongContextQuestionAnswering` takes: kept_contexts, or what is said of every call, such as max_new_tokens.
    Raises:
        UsageError: another task, an argument of loading with a `SharedLLM`, or as `SharedLLM.from_pretrained`.
    """
    check_choice("task", task, [TASK])
    loading = {name: kwargs.pop(name) for name in LOADING if name in kwargs}
    if isinstance(model, SharedLLM):
        given = [*loading, *(["adapter"] if adapter != "default" else [])]
        if given:
            raise UsageError(f"{given[0]} is said where a model is loaded, and this SharedLLM is; leave it out.")
        llm = model
    else:
        llm = SharedLLM.from_pretrained(model, adapter, **loading)
    place: dict[str, Any] = {} if getattr(llm.model, "hf_device_map", None) else {"device": llm.device}
    return LongContextQuestionAnswering(llm.model, llm.tokenizer, llm=llm, task=task, **place, **kwargs)


def register_pipeline() -> None:
    """Teach `transformers.pipeline` the task, as long as this process runs; its further arguments are those above."""
    from transformers.pipelines import PIPELINE_REGISTRY

    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=LongContextQuestionAnswering, pt_model=AutoModelForCausalLM
    )


def _pairs(
    question: str | Sequence[str] | None, context: str | Sequence[str] | None
) -> dict[str, Any] | list[dict[str, Any]]:
    """Questions with their texts, one a dictionary."""
    if isinstance(question, str) or question is None:
        return {"question": question, "context": context}
    texts = [context] * len(question) if isinstance(context, str) or context is None else list(context)
    if len(texts) != len(question):
        raise UsageError(
            f"there are {len(question)} questions and {len(texts)} texts; give one text, or one a question."
        )
    return [{"question": q, "context": text} for q, text in zip(question, texts, strict=True)]
