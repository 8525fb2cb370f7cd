"""What a data recipe says: sources by name, read from YAML with every key and value checked.

A source names where text comes from (`type`), what it is (`kind`), which side of the split it falls on, and how much
of it to take. The split is by source, never by passage, so nothing held out has a neighbour in training.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sharedllm.data.no_repeats import NoRepeats
from sharedllm.errors import UsageError

TYPES = ("debian", "pypi", "installed", "files")
KINDS = ("prose", "technical", "code", "reference")
SPLITS = ("train", "heldout")
GROUPS = ("file", "directory", "source")
MAX_SHARD_BYTES = 2**25  # so that a folder can be carried in pieces
MAX_SHARD_TOKENS = MAX_SHARD_BYTES // 2


@dataclass(frozen=True)
class SourceSpec:
    """One source of text.

    Globs (`include`, `exclude`) match the whole path inside the source; `*` also spans folders.
    `weight` is the source's relative share of training samples. `max_tokens` is a ceiling in tokens: documents are
    then taken in a fixed shuffled order until it is reached. `group` says which files make one document: each
    `file`, all files of a `directory`, or the whole `source`. Documents shorter than `join_below` characters are
    joined with the next ones of the same source, chats with chats (0: never).
    """

    name: str
    type: str
    kind: str
    licence: str
    split: str = "train"
    weight: float = 1.0
    package: str = ""
    version: str = ""
    paths: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_tokens: int | None = None
    group: str = "file"
    join_below: int = 0

    def __post_init__(self) -> None:
        where = f"source '{self.name}'"
        _one_of(self.type, TYPES, f"'type' of {where}")
        _one_of(self.kind, KINDS, f"'kind' of {where}")
        _one_of(self.split, SPLITS, f"'split' of {where}")
        _one_of(self.group, GROUPS, f"'group' of {where}")
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"'weight' of {where} is {self.weight}; expected a number of zero or more.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"'max_tokens' of {where} is {self.max_tokens}; expected at least 1, or leave it out.")
        if self.join_below < 0:
            raise UsageError(f"'join_below' of {where} is {self.join_below}; expected zero or more characters.")
        if self.type == "files" and not self.paths:
            raise UsageError(f"{where} is of type 'files' and names no 'paths'; list at least one file or folder.")
        if self.type != "files" and not self.package:
            raise UsageError(f"{where} is of type '{self.type}' and names no 'package'; add 'package: NAME'.")
        if self.type == "pypi" and not self.version:
            raise UsageError(f"{where} is of type 'pypi' and names no 'version'; pin one, so that a build repeats.")


@dataclass(frozen=True)
class DataRecipe:
    """A named set of sources; `folder` is where relative paths start.

    A shard holds at most `shard_tokens` tokens, and MAX_SHARD_BYTES where a token takes four bytes.
    """

    name: str
    sources: tuple[SourceSpec, ...]
    shard_tokens: int = MAX_SHARD_TOKENS
    folder: Path = Path(".")

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError(f"Recipe '{self.name}' names no source; list at least one under 'sources'.")
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            raise UsageError(f"'shard_tokens' is {self.shard_tokens}; expected 1 to {MAX_SHARD_TOKENS} tokens.")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"Recipe '{self.name}' has two sources called '{name}'; give each its own name.")


def read_recipe(path: str | Path) -> DataRecipe:
    """Reads a YAML recipe file. Raises UsageError (one sentence) for a missing file, a wrong key or a wrong value."""
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=NoRepeats)
    except OSError as error:
        raise UsageError(f"Cannot read the data recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The data recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    return recipe_from_dict(tree, folder=path.parent)


def recipe_from_dict(tree: Any, folder: Path = Path(".")) -> DataRecipe:
    """Builds a recipe from plain YAML data; relative `paths` start at `folder`. Raises UsageError as read_recipe."""
    if not isinstance(tree, dict):
        raise UsageError("A data recipe is a mapping with the keys 'name' and 'sources'; found something else.")
    values = _checked(DataRecipe, tree, "the recipe", skip=("folder",))
    if not isinstance(values["sources"], dict):
        raise UsageError("'sources' of the recipe must be a mapping from a source's name to its settings.")
    sources = []
    for name, body in values["sources"].items():
        if not isinstance(body, dict):
            raise UsageError(f"Source '{name}' must be a mapping of settings, such as 'type: files'.")
        sources.append(SourceSpec(name=str(name), **_checked(SourceSpec, body, f"source '{name}'", skip=("name",))))
    return DataRecipe(**{**values, "sources": tuple(sources)}, folder=folder)


def _checked(cls: type, body: dict[Any, Any], where: str, skip: tuple[str, ...]) -> dict[str, Any]:
    """The keyword arguments for `cls` in `body`, each key known and each value of the declared type."""
    known = {f.name: f for f in fields(cls) if f.name not in skip}
    for key in body:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise UsageError(f"Unknown key '{key}' in {where}; did you mean '{near[0]}'?")
    for name, field in known.items():
        if field.default is MISSING and name not in body:
            raise UsageError(f"{where[0].upper()}{where[1:]} lacks the key '{name}'.")
    return {key: _typed(value, str(known[key].type), f"'{key}' of {where}") for key, value in body.items()}


def _typed(value: Any, declared: str, where: str) -> Any:
    """`value` as the declared type, or UsageError; lists become tuples and whole numbers floats where declared."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if declared == "str" and isinstance(value, str):
        return value
    if declared == "float" and (number or isinstance(value, float)):
        return float(value)
    if (declared.startswith("int") and number) or (declared == "int | None" and value is None):
        return value
    if declared == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if declared.startswith("tuple[SourceSpec"):
        return value
    wanted = {"str": "a text (put quotes around it)", "float": "a number", "tuple[str, ...]": "a list of texts"}
    raise UsageError(f"{where} is {value!r}; expected {wanted.get(declared, 'a whole number')}.")


def _one_of(value: str, allowed: tuple[str, ...], where: str) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.0) or [allowed[0]]
        raise UsageError(f"{where} is '{value}'; expected one of {', '.join(allowed)} (did you mean '{near[0]}'?).")
