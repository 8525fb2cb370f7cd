"""`SharedLLM`: an LLM that reads texts longer than its window through its own lowest layers.

llm = SharedLLM.from_pretrained()
context = llm.read(text)
print(llm.ask(context, "Who ...?"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm import adapter as adapters
from sharedllm import answering, folding
from sharedllm.architectures import Parts
from sharedllm.branch import Memory
from sharedllm.config import SharedConfig, check_choice
from sharedllm.context import Context, Progress
from sharedllm.encoder import LowerModel
from sharedllm.errors import UsageError
from sharedllm.explain import Passage
from sharedllm.hardware import DTYPES, choose_device, choose_dtype
from sharedllm.inject import DETACHED, Injection, forget_compiled
from sharedllm.keep import Keep
from sharedllm.loading import fingerprint, load_model, moved
from sharedllm.prompts import Answer, not_padding
from sharedllm.publish import Published, stored_dtype
from sharedllm.reader import Reader
from sharedllm.recall import Contexts, recalled
from sharedllm.relevance import asked
from sharedllm.resolution import AS_TRAINED, Resolution
from sharedllm.selfcheck import parts_for

SEARCHES = ("query", "continue", "later")


class SharedLLM(Published):
    """A Hugging Face decoder with the injection attached.

    Threads may share one and its contexts: they read and answer in turns.

    Attributes:
        model: the Hugging Face model underneath, frozen by convention; `detach` gives it back.
        tokenizer: its tokenizer, or None.
        config: the mechanism's settings; `config.injected_layers` is M.
        injection: the adapter, an `nn.Module`; its parameters are the only ones to train.
        adapter: folder or name of the adapter in use, `none` for an untrained one.
    """

    def __init__(self, model: Any, tokenizer: Any, config: SharedConfig, name: str = "") -> None:
        self.parts = parts_for(model, config)
        self.model, self.tokenizer, self.config, self.name = model, tokenizer, config, name
        self.adapter = "none"
        self.about, self.stored = {}, None
        self.fingerprint = fingerprint(model, self.parts)
        self.lower = LowerModel(self.parts, config.injected_layers, config.skipped_layers)
        self.reader = Reader(self.lower, config, self.fingerprint, tokenizer)
        self.injection = Injection(self.parts, config)
        self.lower.apart = partial(self.injection.reading, None)  # which follows a deep copy, as a closure would not
        self.lower.reweighted = self.injection.forget
        self._attached = True
        forget_compiled(model)

    @classmethod
    def from_pretrained(
        cls,
        model: Any = None,
        adapter: str | Path | None = "default",
        config: SharedConfig | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        tokenizer: Any = None,
        stored_bits: int | None = None,
    ) -> SharedLLM:
        """Load a model and attach an adapter.

        Args:
            model: None for the default model; a Hugging Face name, a folder or a `.gguf` file; or an
                already loaded model, which is taken as it is, and left so where it is refused.
            adapter: `default` (the one shipped for this model, untrained if there is none), `none`, a folder
                written by `sharedllm train` or `save_pretrained`, or `user/name`, `user/name@revision` on the Hub.
            config: the mechanism's settings where no adapter brings its own. One that ships and was trained with others (than
                in `stored_bits`) is left out, with a warning; one that is named is refused.
            device, dtype: None chooses what this machine is fast with; see `hardware`.
            tokenizer: one already loaded; needed for `ask` and text when `model` is an object.
            stored_bits: of each number that is kept of a text, 16, 8 or 4; None: as the settings say. Contexts of all are read.
        Raises:
            UsageError: no such model, adapter or device; or they do not fit each other.
            WorkError: a file is broken.
        """
        name, given = "", isinstance(model, nn.Module)
        if isinstance(dtype, torch.dtype):
            dtype = str(dtype).removeprefix("torch.")
        if given:
            name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        else:
            place = choose_device(device).value
            kind = DTYPES[choose_dtype(place, dtype).value]
            model, tokenizer, name = load_model(model, place, kind, tokenizer)
        folder, described = adapters.find_adapter(model, adapter, config)
        if described is not None:
            config = described["config"]
        elif config is None:
            parts = Parts(model)
            fitting = SharedConfig.fitting(len(parts.layers), parts.window)
            config = replace(fitting, rank=min(fitting.rank, parts.hidden_size, parts.heads * parts.head_dim))
        if stored_bits is not None:
            config = replace(config, stored_bits=stored_bits)
        if given and (device, dtype) != (None, None):
            parts_for(model, config)
            if folder is not None:
                adapters.check_weights(folder)
            model = moved(model, device, dtype)  # once nothing is left to refuse: what was rounded stays so
        llm = cls(model, tokenizer, config, name)
        if folder is not None and described is not None:
            try:
                adapters.load_weights(folder, llm.injection)
            except Exception:
                llm.detach()
                raise
            llm.adapter = folder.name if folder.parent == adapters.SHIPPED else str(adapter)
            llm.about, llm.stored = described.get("about") or {}, stored_dtype(folder)
        return llm

    @property
    def device(self) -> torch.device:
        """Where token ids go in; other layers of a spread model may be elsewhere."""
        return self.lower.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model's embeddings, and so its hidden states, are in."""
        return self.lower.dtype

    @property
    def window(self) -> int:
        """Positions the model was trained for: what fits is never compressed by `ask`."""
        return self.parts.window

    def detach(self) -> Any:
        """Take the injection off; the model returned computes bit for bit what it did before."""
        self.injection.remove()
        self._attached = False
        forget_compiled(self.model)
        return self.model

    def read(
        self,
        text: str | Sequence[int] | Tensor,
        progress: Progress | None = None,
        keep: Keep = None,
        compact: bool = False,
    ) -> Context:
        """Read a text (or token ids) once.

        A text that fits the model's window is only tokenised: `ask` hands it to the plain model.

        Args:
            progress: called with tokens read and tokens in all.
            keep: what every question takes in whole: ranges of characters, [(start, end), ...] (of token ids: of
                tokens), or `tags` for what stands between `<keep>` and `</keep>`, which are not read themselves.
            compact: keep a quarter of the bytes; each question then reads the chunk it takes in whole again.
        Raises:
            UsageError: text without a tokenizer, ids outside the vocabulary, or `keep` fits not.
        """
        self._check_attached()
        return self.reader.read(text, progress, keep, compact)

    @torch.no_grad()
    def query(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, question_mask: Tensor | None = None
    ) -> list[Tensor]:
        """What each row of `input_ids` [B, T] is searched by, [Q, R] a row; see `relevance.asked`.

        Raises:
            UsageError: a row has no token to ask with.
        """
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
        resolution: Resolution = AS_TRAINED,
    ) -> Memory | None:
        """Search the contexts once and give the slots the rows of `input_ids` attend to; None without any.

        Args:
            contexts: one for all rows, or a list with one (or None) a row.
            input_ids: [B, T], the window.
            search: `query` (what is nearest to the question, and the nearer the more it counts), `continue` (what is nearest to
                a text that goes on, all of it alike) or `later` (the newest chunks, the later halves).
            noise: of split points; needs contexts encoded with `every_token`.
            question_mask: [B, T], which tokens of the window are searched by; None: its last 64, of one that goes on 256.
            resolution: settings of this reading alone.
        Raises:
            UsageError: the model was detached, there is no such `search`, the window is empty, the contexts are not one a row or
                were made with another model or other settings, a row has no token to ask with, the mask is none of its tokens,
                or a setting is out of range.
        """
        self._check_attached()
        check_choice("search", search, SEARCHES)
        with self.lower.apart():  # another thread may read on
            return recalled(
                self,
                contexts,
                input_ids,
                attention_mask,
                search=search,
                noise=noise,
                generator=generator,
                question_mask=question_mask,
                resolution=resolution,
            )

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
            input_ids: [B, T], padded at either side with `attention_mask` [B, T] saying where. With `past_key_values` of
                S tokens the mask is [B, S + T]: it must cover the past. Without a context any that the model takes.
            context: one `Context` for all rows, or a list with one (or None) a row.
            search, question_mask: as of `recall`: `query` for what asks, `continue` for a text that goes on.
            kwargs: whatever the model's own forward takes.
        Raises:
            UsageError: as `recall`.
        """
        input_ids = input_ids.to(self.device)
        if isinstance(attention_mask, Tensor):
            attention_mask = attention_mask.to(self.device)
            if attention_mask.ndim == 2 and "position_ids" not in kwargs:
                positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
                kwargs["position_ids"] = positions[:, -input_ids.shape[1] :]
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
        """The model's own `generate`, with all its arguments; the context is searched once, at the start.

        One row may be longer than the window, or become so: its oldest chunks are then read into a context of their own, which
        is searched from then on beside `context`. That goes with the arguments in `folding.SETTINGS`.

        Args:
            input_ids: [B, T], padded at the left.
            context, search, question_mask: as for a call.
            attention_mask: [B, T]; None: all but padding, which is told by `pad_token_id` where that ends no answer.
            kwargs: whatever the model's own `generate` takes.
        Returns:
            As the model's own: token ids [B * num_return_sequences, T + new], the window's among them; an object with
            them as `sequences` under `return_dict_in_generate`.
        Raises:
            UsageError: the model was detached, the window is empty, the contexts are not one a row or were made with
                another model or other settings, or a row has no token to ask with; several rows, or beams, go past the
                window.
        """
        self._check_attached()
        input_ids = input_ids.to(self.device)
        if attention_mask is None:
            attention_mask = not_padding(self.model, input_ids, kwargs)
        attention_mask = attention_mask.to(self.device)
        if folding.goes_past(self, input_ids.shape[1], kwargs):
            return folding.generated(self, input_ids, context, attention_mask, search, question_mask, kwargs)
        memory = self.recall(context, input_ids, attention_mask, search, question_mask=question_mask)
        with self.injection.reading(memory):
            return self.model.generate(input_ids, attention_mask=attention_mask, **kwargs)

    def ask(self, context: Context, question: str, max_new_tokens: int | None = None, **kwargs: Any) -> str:
        """Answer a question about a context; `answer` gives the times and counts as well, and says what `kwargs` may be."""
        return self.answer(context, question, max_new_tokens, **kwargs).text

    def answer(
        self,
        context: Context,
        question: str,
        max_new_tokens: int | None = None,
        *,
        slots_per_leaf: int | None = None,
        fine_chunks: int | None = None,
        read_chunks: int | None = None,
        quoted_tokens: int | None = None,
        **kwargs: Any,
    ) -> Answer:
        """Answer a question about a context, greedily unless `kwargs` say otherwise.

        A context that fits the window beside the question and the answer is not compressed: the plain
        model reads it.

        Args:
            max_new_tokens: None: as many as a `generation_config` among `kwargs` says, else 128.
            slots_per_leaf, fine_chunks, read_chunks, quoted_tokens: as in `SharedConfig`, for this question alone; None: as the
                adapter was trained. A chunk of which they need more than the context stores is read again.
            kwargs: whatever the model's own `generate` takes for one answer.
        Raises:
            UsageError: an empty question, no tokenizer, `max_new_tokens` below 1 or more than the window holds beside the
                question, a context of another model or other settings, settings out of range, `max_length`, or an argument that
                several answers or another prompt would need.
        """
        self._check_attached()
        resolution = Resolution(slots_per_leaf, fine_chunks, read_chunks, quoted_tokens)
        return answering.answer(self, context, question, max_new_tokens, resolution, kwargs)

    def explain(
        self,
        context: Context,
        question: str,
        passages: int = 5,
        max_new_tokens: int = 128,
        *,
        slots_per_leaf: int | None = None,
        fine_chunks: int | None = None,
        read_chunks: int | None = None,
        quoted_tokens: int | None = None,
    ) -> list[Passage]:
        """At most `passages` passages, those that `answer` with the same arguments reads most finely and nearest first.

        A context that is not compressed is one passage.

        Raises:
            UsageError: an empty question or one that fills the window, no tokenizer, `max_new_tokens` below 1, a context of
                another model or other settings, or settings out of range.
        """
        self._check_attached()
        resolution = Resolution(slots_per_leaf, fine_chunks, read_chunks, quoted_tokens)
        return answering.explain(self, context, question, passages, max_new_tokens, resolution)

    def _check_attached(self) -> None:
        if not self._attached:
            raise UsageError(DETACHED)
