"""SharedLLM: read texts far longer than an LLM's window with the LLM you already have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedllm.collection.search import Collection
    from sharedllm.config import SharedConfig
    from sharedllm.context import Context
    from sharedllm.errors import SharedLLMError, UsageError, WorkError
    from sharedllm.library import Library
    from sharedllm.model import SharedLLM
    from sharedllm.pipelines import pipeline, register_pipeline

__version__ = "0.1.0"
_HOMES = {
    "SharedLLM": "model",
    "SharedConfig": "config",
    "Context": "context",
    "Library": "library",
    "pipeline": "pipelines",
    "register_pipeline": "pipelines",
    "Collection": "collection.search",
    "SharedLLMError": "errors",
    "UsageError": "errors",
    "WorkError": "errors",
}
__all__ = [
    "Collection",
    "Context",
    "Library",
    "SharedConfig",
    "SharedLLM",
    "SharedLLMError",
    "UsageError",
    "WorkError",
    "__version__",
    "pipeline",
    "register_pipeline",
]


def __getattr__(name: str) -> Any:
    # Names are imported when first used, so that `sharedllm --help` need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'sharedllm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sharedllm.{_HOMES[name]}"), name)
