"""A context meets an adapter: whether it holds what the adapter's questions need, and what of it they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedllm.context import LAYERS, Context, layers_of, view_of
from sharedllm.errors import UsageError

if TYPE_CHECKING:
    from sharedllm.reader import Reader


def bound(reader: Reader, context: Context) -> Context:
    """A context of the reader's model, for its settings; slots stay where they are kept.

    A context of another adapter that keeps more than this one needs stays as it is: what is returned is a view of it.

    Raises:
        UsageError: it was made with settings that do not do; the sentence says which.
    """
    shape = reader.new_context().shape
    for name, stored in context.shape.items():
        here = shape[name]
        richer = {
            "injected_layers": stored > here,
            "skipped_layers": stored < here,
            "compared_layer": _compares(reader, context.shape),
            "fine_chunks": stored > 0,
            "compact": True,
        }.get(name)
        if stored != here and not richer:
            raise UsageError(
                f"the context was made with {name} {stored}, this adapter needs {here}; encode the text again."
            )
    context.check(reader.lower.parts)
    if reader.config.search_by == "last" and any(block.reps.shape[1] == 0 for block in context.blocks):
        raise UsageError(
            "the context was made for search_by tokens, this adapter searches by last; encode the text again."
        )
    fewer = any(context.shape[name] != shape[name] for name in ("injected_layers", "skipped_layers"))
    if fewer or shape["fine_chunks"] == 0 < context.shape["fine_chunks"]:
        context = view_of(context)
    if fewer:
        _narrow(context, reader.about(context.compact))
    context.again.clear()  # chunks that another reader read once more
    context.shape = {**context.shape, "fine_chunks": reader.config.fine_chunks}
    context.reader = reader
    return context


def _compares(reader: Reader, shape: dict[str, int]) -> bool:
    """Whether a context of this shape has what the adapter's questions are compared with."""
    if reader.config.search_by == "last":
        return True
    needed, apart = reader.config.representing_layer, shape["compared_layer"]
    return apart == needed or (apart < 0 and shape["skipped_layers"] <= needed)


def _narrow(context: Context, about: dict[str, Any]) -> None:
    """Leave in a context only the layers that settings need, `Reader.about`."""
    needed = {name: int(about[name]) for name in LAYERS}
    context.blocks = layers_of(context.blocks, context.shape, needed)
    context.shape = {**context.shape, **needed}
