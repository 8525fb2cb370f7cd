"""Documents that are too short for a recipe's contexts, and what is said where some or all of them are."""

from __future__ import annotations

from sharedllm.data.folder import TokenFolder
from sharedllm.train.recipe import Recipe

NAMED = 5  # sources at most in a sentence
REMEDY = "lower context_chunks, or join more of a source's texts (join_below)"


def least_tokens(recipe: Recipe) -> int:
    """Tokens of the shortest document that a sample can be drawn from."""
    return (recipe.context_chunks[0] + 1) * recipe.config.chunk_length


def none_left(recipe: Recipe, split: str) -> str:
    """The sentence for a split in which no document is long enough."""
    remedy = REMEDY + ("; or hold out a longer source, or set validate_samples=0" if split == "heldout" else "")
    return f"the data in {recipe.data} has no {split} document of {least_tokens(recipe)} tokens; {remedy}."


def left_out(folder: TokenFolder, recipe: Recipe) -> str | None:
    """The sentence for documents that are not trained on, for being too short; None where there are none."""
    least, documents = least_tokens(recipe), folder.documents(split="train")
    short = [d for d in documents if d.tokens < least]
    if not short:
        return None
    share = sum(d.tokens for d in short) / sum(d.tokens for d in documents)
    read = {d.source for d in documents if d.tokens >= least}
    lost = [source for source in dict.fromkeys(d.source for d in short) if source not in read]
    more = f" and {len(lost) - NAMED} more sources" if len(lost) > NAMED else ""
    whole = f", all of {', '.join(lost[:NAMED])}{more} among them" if lost else ""
    return (
        f"{len(short):,} of {len(documents):,} documents, with {100 * share:.1f} % of the tokens, have fewer than {least:,} "
        f"tokens and are not trained on{whole}; {REMEDY} and build the data again."
    )
