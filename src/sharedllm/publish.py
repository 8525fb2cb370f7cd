"""Saving an adapter, for oneself or for others: a folder, with a model card, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sharedllm.adapter import WEIGHTS_FILE, save_adapter
from sharedllm.architectures import Parts
from sharedllm.card import model_card
from sharedllm.config import SharedConfig
from sharedllm.hub import named_for_others, pushed
from sharedllm.inject import Injection

STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Published:
    """The part of `SharedLLM` that gives its adapter away."""

    parts: Parts
    config: SharedConfig
    injection: Injection
    fingerprint: str
    name: str
    about: dict[str, Any]
    """What training wrote into the adapter that was loaded, such as its recipe and sources."""
    stored: torch.dtype | None
    """What the weights of that adapter are stored in; None: in several dtypes, or nothing was loaded."""

    def save_adapter(
        self,
        folder: str | Path,
        about: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        card: str | None = None,
    ) -> None:
        """Write the adapter to `folder`, with the model's name but no path to it; see `adapter.save_adapter`."""
        known = (self.injection, self.config, self.parts, self.fingerprint)
        save_adapter(folder, *known, about, dtype, base=named_for_others(self.name), card=card)

    def save_pretrained(
        self, folder: str | Path, results: Sequence[Mapping[str, Any]] = (), license: str | None = None
    ) -> None:
        """Write the adapter to `folder` with a model card; `from_pretrained(model, adapter=folder)` reads it.

        One that was loaded keeps what training wrote into it, and the dtype it was stored in.

        Args:
            results, license: for the card; see `card.model_card`.
        Raises:
            UsageError: `folder` holds anything but an adapter.
            WorkError: the folder cannot be written; what was there before stays.
        """
        self._save(folder, results, license)

    def _save(
        self,
        folder: str | Path,
        results: Sequence[Mapping[str, Any]],
        license: str | None,
        repository: str | None = None,
    ) -> None:
        """The same, with a card that says in which repository the adapter is."""
        known = (self.name, self.parts, self.config, self.injection)
        card = model_card(*known, results, license, self.about, repository)
        self.save_adapter(folder, _named(self.about), self.stored, card)

    def push_to_hub(
        self,
        repository: str,
        results: Sequence[Mapping[str, Any]] = (),
        license: str | None = None,
        commit_message: str = "A SharedLLM adapter",
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Put what `save_pretrained` writes on the Hugging Face Hub; returns the address of the commit.

        Args:
            repository: `user/name`; made where it is not there, `private` or not.
            token: of an account that may write there; None: the one of `hf auth login`.
        Raises:
            WorkError: the Hub cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "adapter"
            self._save(folder, results, license, repository if "/" in repository else None)
            return pushed(folder, repository, commit_message, private, token)


def _named(about: dict[str, Any]) -> dict[str, Any]:
    """The same without the folders of the machine it was trained on: of a path from the root only the last name."""
    recipe = about.get("recipe")
    if not isinstance(recipe, dict):
        return about
    short = {k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in recipe.items()}
    return {**about, "recipe": short}


def stored_dtype(folder: Path) -> torch.dtype | None:
    """What the weights of an adapter's folder are stored in; None where that is more than one dtype."""
    with safe_open(folder / WEIGHTS_FILE, "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}
    return STORED.get(kinds.pop()) if len(kinds) == 1 else None
