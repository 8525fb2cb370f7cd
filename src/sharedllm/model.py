"""`SharedLLM`: an LLM that reads texts longer than its window through its own lowest layers.

llm = SharedLLM.from_pretrained()
context = llm.read(text)
print(llm.ask(context, "Who ...?"))
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm import adapter as adapters
from sharedllm.architectures import Parts
from sharedllm.config import SharedConfig, check_choice
from sharedllm.context import Context, Progress
from sharedllm.encoder import LowerModel
from sharedllm.errors import UsageError
from sharedllm.hardware import DTYPES, choose_device, choose_dtype
from sharedllm.inject import Injection, Memory
from sharedllm.loading import fingerprint, load_model, moved
from sharedllm.memory import Slots, build_memory, select_slots
from sharedllm.prompts import Answer, Prompt
from sharedllm.reader import Reader
from sharedllm.relevance import asked
from sharedllm.selfcheck import checked_parts

SEARCHES = ("query", "later")
Contexts = Context | Sequence[Context | None] | None


class SharedLLM:
    """A Hugging Face decoder with the injection attached.

    Attributes:
        model: the Hugging Face model underneath, frozen by convention; `detach` gives it back.
        tokenizer: its tokenizer, or None.
        config: the mechanism's settings; `config.injected_layers` is M.
        injection: the adapter, an `nn.Module`; its parameters are the only ones to train.
        adapter: folder or name of the adapter in use, `none` for an untrained one.
    """

    def __init__(self, model: Any, tokenizer: Any, config: SharedConfig, name: str = "") -> None:
        self.parts = checked_parts(model, config.injected_layers)
        layers = len(self.parts.layers)
        if not 2 <= layers or config.injected_layers > layers:
            raise UsageError(
                f"injected_layers is {config.injected_layers}, but the model has {layers} layers; "
                "use at most that many, and a model of at least two."
            )
        self.model, self.tokenizer, self.config, self.name = model, tokenizer, config, name
        self.adapter = "none"
        self.fingerprint = fingerprint(model, self.parts)
        self.lower = LowerModel(self.parts, config.injected_layers)
        self.reader = Reader(self.lower, config, self.fingerprint, tokenizer)
        self.injection = Injection(self.parts, config)
        self.lower.apart = lambda: self.injection.reading(None)
        self._attached = True

    @classmethod
    def from_pretrained(
        cls,
        model: Any = None,
        adapter: str | Path | None = "default",
        config: SharedConfig | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        tokenizer: Any = None,
    ) -> SharedLLM:
        """Load a model and attach an adapter.

        Args:
            model: None for the default model; a Hugging Face name, a folder or a `.gguf` file; or an
                already loaded model, which is taken as it is.
            adapter: `default` (the one shipped for this model, untrained if there is none), `none`, or a
                folder written by `sharedllm train`.
            config: the mechanism's settings when no adapter brings its own.
            device, dtype: None chooses what this machine is fast with; see `hardware`.
            tokenizer: one already loaded; needed for `ask` and text when `model` is an object.
        Raises:
            UsageError: no such model, adapter or device; or they do not fit each other.
            WorkError: a file is broken.
        """
        name = ""
        if isinstance(dtype, torch.dtype):
            dtype = str(dtype).removeprefix("torch.")
        if isinstance(model, nn.Module):
            model = moved(model, device, dtype)
            name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        else:
            place = choose_device(device).value
            kind = DTYPES[choose_dtype(place, dtype).value]
            model, tokenizer, name = load_model(model, place, kind, tokenizer)
        folder, described = adapters.find_adapter(model, adapter, config)
        if described is not None:
            config = described["config"]
        elif config is None:
            config = SharedConfig.fitting(len(Parts(model).layers))
        llm = cls(model, tokenizer, config, name)
        if folder is not None:
            try:
                adapters.load_weights(folder, llm.injection)
            except Exception:
                llm.detach()
                raise
            llm.adapter = folder.name if folder.parent == adapters.SHIPPED else str(folder)
        return llm

    @property
    def device(self) -> torch.device:
        return self.lower.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lower.dtype

    @property
    def window(self) -> int:
        """Positions the model was trained for: what fits is never compressed by `ask`."""
        return self.parts.window

    def detach(self) -> Any:
        """Take the injection off; the model returned computes bit for bit what it did before."""
        self.injection.remove()
        self._attached = False
        return self.model

    def save_adapter(
        self, folder: str | Path, about: dict[str, Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write the adapter to `folder`; see `adapter.save_adapter`."""
        adapters.save_adapter(folder, self.injection, self.config, self.parts, self.fingerprint, about, dtype)

    def read(self, text: str | Sequence[int] | Tensor, progress: Progress | None = None) -> Context:
        """Read a text (or token ids) once.

        A text that fits the model's window is only tokenised: `ask` hands it to the plain model.

        Args:
            progress: called with tokens read and tokens in all.
        Raises:
            UsageError: text without a tokenizer, or ids outside the vocabulary.
        """
        self._check_attached()
        context = self.reader.new_context()
        self.reader.append(context, text, progress)
        return context

    @torch.no_grad()
    def query(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, question_mask: Tensor | None = None
    ) -> list[Tensor]:
        """What each row of `input_ids` [B, T] is searched by, [Q, R] a row; see `relevance.asked`."""
        return asked(self.lower, self.config, input_ids, attention_mask, question_mask)

    def recall(
        self,
        contexts: Contexts,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        search: str = "query",
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        question_mask: Tensor | None = None,
    ) -> Memory | None:
        """Search the contexts once and give the slots the rows of `input_ids` attend to; None without any.

        Args:
            contexts: one for all rows, or a list with one (or None) a row.
            input_ids: [B, T], the window.
            search: `query` (what is nearest to the question) or `later` (the newest chunks, the later halves).
            noise: of split points; needs contexts encoded with `every_token`.
            question_mask: [B, T], which tokens of the window ask; None: its last 64.
        """
        self._check_attached()
        check_choice("search", search, SEARCHES)
        if input_ids.shape[1] == 0:
            raise UsageError("the window is empty; give at least one token to read the context with.")
        rows = list(contexts) if isinstance(contexts, Sequence) else [contexts] * input_ids.shape[0]
        if len(rows) != input_ids.shape[0]:
            raise UsageError(
                f"there are {len(rows)} contexts for {input_ids.shape[0]} rows; give one a row, or a single one for all."
            )
        for context in rows:
            if context is not None:
                self.reader.bind(context)
                if context.encoded_tokens < context.tokens:
                    self.reader.encode(context)
        if all(c is None or not c.blocks for c in rows):
            return None
        queries = self.query(input_ids, attention_mask, question_mask) if search == "query" else None
        slots: list[Slots | None] = []
        for b, context in enumerate(rows):
            query = None if queries is None else queries[b]
            slots.append(
                None if context is None else select_slots(context.blocks, self.config, query, noise, generator)
            )
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return build_memory(slots, self.parts, self.config, like)

    def __call__(
        self,
        input_ids: Tensor,
        context: Contexts = None,
        attention_mask: Tensor | None = None,
        search: str = "query",
        question_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's forward pass over the window, taking the context in; returns its usual output.

        Args:
            input_ids: [B, T], padded at either side with `attention_mask` [B, T] saying where.
            context: one `Context` for all rows, or a list with one (or None) a row.
            search: how leaves are chosen, `query` or `later`.
            question_mask: [B, T], which tokens of the window ask; None: its last 64.
            kwargs: whatever the model's own forward takes.
        """
        input_ids = input_ids.to(self.device)
        if attention_mask is not None:
            attention_mask = attention_mask.to(self.device)
            if "position_ids" not in kwargs and "past_key_values" not in kwargs:
                kwargs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        memory = self.recall(context, input_ids, attention_mask, search, question_mask=question_mask)
        with self.injection.reading(memory):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        context: Contexts = None,
        attention_mask: Tensor | None = None,
        search: str = "query",
        question_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own `generate`, with all its arguments; the context is searched once, at the start."""
        input_ids = input_ids.to(self.device)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        attention_mask = attention_mask.to(self.device)
        memory = self.recall(context, input_ids, attention_mask, search, question_mask=question_mask)
        with self.injection.reading(memory):
            return self.model.generate(input_ids, attention_mask=attention_mask, **kwargs)

    def ask(self, context: Context, question: str, max_new_tokens: int = 128, **kwargs: Any) -> str:
        """Answer a question about a context; `answer` gives the times and counts as well."""
        return self.answer(context, question, max_new_tokens, **kwargs).text

    def answer(self, context: Context, question: str, max_new_tokens: int = 128, **kwargs: Any) -> Answer:
        """Answer a question about a context, greedily unless `kwargs` say otherwise.

        A context that fits the window beside the question and the answer is not compressed: the plain
        model reads it.

        Raises:
            UsageError: an empty question, no tokenizer, or `max_new_tokens` below 1.
        """
        self._check_attached()
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        self.reader.bind(context)
        prompt = Prompt(self.tokenizer, question)
        plain = prompt.with_text(context.ids)
        memory, started = None, time.perf_counter()
        if len(plain) + max_new_tokens <= self.window:
            ids = torch.tensor([plain], device=self.device)
        else:
            ids = torch.tensor([prompt.alone()], device=self.device)
            if ids.shape[1] >= self.window:
                raise UsageError(
                    f"the question has {ids.shape[1]} tokens and the model's window {self.window}; ask a shorter one."
                )
            memory = self.recall(context, ids, question_mask=prompt.question_mask().to(self.device))
        searched = time.perf_counter()
        with self.injection.reading(memory):
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                **{"do_sample": False, "pad_token_id": prompt.pad_id, **kwargs},
            )
        new = getattr(out, "sequences", out)[0, ids.shape[1] :]  # a dictionary under return_dict_in_generate
        return Answer(
            text=self.tokenizer.decode(new, skip_special_tokens=True).strip(),
            compressed=memory is not None,
            slots=0 if memory is None else memory.mask.shape[1] - 1,
            search_seconds=searched - started,
            generate_seconds=time.perf_counter() - searched,
            generated_tokens=len(new),
        )

    def _check_attached(self) -> None:
        if not self._attached:
            raise UsageError("this model was detached; call SharedLLM.from_pretrained again to attach it.")
