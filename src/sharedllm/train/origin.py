"""What a run must go on with to end where an unbroken one would have ended, by fingerprints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sharedllm.adapter import WEIGHTS_FILE
from sharedllm.data.fetch import sha256_file
from sharedllm.data.folder import TokenFolder
from sharedllm.data.study import Study
from sharedllm.train.recipe import Recipe

MODEL = "model"
"""The name of the model's identity among what a run must go on with."""
START = "start_sha256"
"""The name under which a run notes the weights it started from; they may change meanwhile where they are not mixed in."""


def origin(recipe: Recipe, model: str, folder: TokenFolder, study: Study | None, start: Path | None) -> dict[str, str]:
    """Fingerprints by what they are of; a checkpoint keeps them, and all processes of a run have the same.

    Args:
        model: the model's identity (`Reader.identity`).
        start: folder of the adapter that is mixed into the finished one (`recipe.keep_start`), else read only once.
    """
    manifest = folder.manifest
    # The listing says where documents lie; which tokens lie there, and how often a source is drawn, is said here.
    tokens = [shard["sha256"] for shard in manifest["shards"] if shard["split"] == "train"]
    weights = {name: source["weight"] for name, source in folder.sources.items() if source["split"] == "train"}
    build = json.dumps([tokens, weights], sort_keys=True).encode()
    about = {
        MODEL: model,
        "data": manifest["documents"]["sha256"],
        "build of the data": hashlib.sha256(build).hexdigest(),
    }
    if study is not None:
        about["study"] = study.sha256
    if start is not None and recipe.keep_start:
        about["start"] = sha256_file(start / WEIGHTS_FILE)
    return about


def start_sha256(start: Path | None) -> str | None:
    """Of the weights of the adapter in the folder `start`, in hexadecimal."""
    return None if start is None else sha256_file(start / WEIGHTS_FILE)


def trained_on(folder: TokenFolder) -> dict[str, dict[str, Any]]:
    """Of every source that samples are drawn from its licence, version and tokens, by its name."""
    drawn = {name: source for name, source in folder.sources.items() if source["split"] == "train" and source["weight"]}
    return {name: {key: source[key] for key in ("licence", "version", "tokens")} for name, source in drawn.items()}
