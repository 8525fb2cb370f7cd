"""Training text: a recipe names sources, `build` turns them into a folder of tokens, `TokenFolder` reads it."""

from sharedllm.data.builder import build
from sharedllm.data.encode import fingerprint
from sharedllm.data.folder import Document, TokenFolder
from sharedllm.data.recipe import DataRecipe, SourceSpec, read_recipe, recipe_from_dict

__all__ = ["DataRecipe", "Document", "SourceSpec", "TokenFolder", "build", "fingerprint", "read_recipe",
           "recipe_from_dict"]  # fmt: skip
