"""Adapter files: `adapter_config.json` and `adapter_model.safetensors`, checked against the model they meet."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sharedllm.architectures import Parts
from sharedllm.config import SharedConfig
from sharedllm.errors import UsageError, WorkError
from sharedllm.files import replaceable, replaced_folder
from sharedllm.hub import fetched, is_hub_name
from sharedllm.loading import fingerprint as fingerprint_of

logger = logging.getLogger(__name__)

VERSION, KIND = 2, "sharedllm-adapter"
READ = (1, VERSION)  # 1 had no hash of the weights
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "README.md"
SHIPPED = Path(__file__).parent / "adapters"


class Described(Protocol):
    """Settings that can be written to JSON."""

    def to_dict(self) -> dict[str, Any]: ...


def model_sizes(parts: Parts) -> dict[str, Any]:
    """What an adapter's weights depend on, as written to its configuration."""
    return {
        "family": parts.model_type,
        "hidden_size": parts.hidden_size,
        "heads": parts.heads,
        "kv_heads": parts.kv_heads,
        "head_dim": parts.head_dim,
        "layers": len(parts.layers),
    }


def save_adapter(
    folder: str | Path,
    injection: nn.Module,
    config: Described,
    parts: Parts,
    fingerprint: str,
    about: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    kind: str = KIND,
    base: str = "",
    card: str | None = None,
) -> None:
    """Write an adapter folder, whole or not at all.

    Args:
        about: free remarks kept in the configuration (recipe, tokens trained, ...).
        dtype: what the weights are stored in; None leaves them as they are.
        kind: what the weights are of; a reader of another kind refuses them.
        base: name of the model that it was trained for, kept as peft does.
        card: Markdown for people, written beside.
    Raises:
        UsageError: `folder` holds anything but an adapter of this kind.
        WorkError: the folder cannot be written; what was there before stays.
    """
    described: dict[str, Any] = {
        "format": kind,
        "version": VERSION,
        "base_model_name_or_path": base,
        "fingerprint": fingerprint,
        "model": model_sizes(parts),
        "config": config.to_dict(),
        "about": about or {},
    }
    weights = {name: p.detach().to("cpu", dtype).contiguous() for name, p in injection.state_dict().items()}
    _check_replaceable(Path(folder), kind)
    with replaced_folder(Path(folder)) as temporary:
        save_file(weights, temporary / WEIGHTS_FILE)
        described["weights_sha256"] = _sha256(temporary / WEIGHTS_FILE)
        if card is not None:
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        (temporary / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _check_replaceable(folder: Path, kind: str) -> None:
    """Raise `UsageError` when replacing `folder` would delete anything but an adapter of this kind; peft's have its names."""
    file = folder / CONFIG_FILE
    ours = file.is_file()  # else a README.md there is someone else's
    replaceable(folder, (CONFIG_FILE, WEIGHTS_FILE, *((CARD_FILE,) if ours else ())), "an adapter")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is broken
        return
    if not isinstance(described, dict) or described.get("format") != kind:
        raise UsageError(f"{folder} holds an adapter of another kind, which would be lost; choose another folder.")


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The checked contents of `adapter_config.json`; its `config` entry is a `SharedConfig`.

    Raises:
        UsageError: not an adapter folder, or of another version.
        WorkError: the file is broken.
    """
    described = read_described(folder)
    described["config"] = SharedConfig.from_dict(described["config"])
    return described


def read_described(folder: str | Path, kind: str = KIND) -> dict[str, Any]:
    """The same for weights of any kind; the `config` entry is left as plain values."""
    folder = Path(folder)
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UsageError(f"{folder} is not an adapter: it has no {CONFIG_FILE}.")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(f"{file} cannot be read ({error}); train or copy the adapter again.") from error
    if not isinstance(described, dict) or described.get("format") != kind:
        raise UsageError(f"{folder} holds an adapter of another kind; this library reads its own adapters only.")
    if described.get("version") not in READ:
        raise UsageError(
            f"the adapter in {folder} has format version {described.get('version')}, this release reads 1 and {VERSION}."
        )
    if described["version"] > 1 and not isinstance(described.get("weights_sha256"), str):
        raise WorkError(f"{file} lacks the hash of its weights; train or copy the adapter again.")
    if not isinstance(described.get("config"), dict) or not isinstance(described.get("model"), dict):
        raise WorkError(f"{file} lacks its model or config part; train or copy the adapter again.")
    return described


def check_adapter(described: dict[str, Any], parts: Parts, folder: str | Path) -> None:
    """Raise `UsageError` when an adapter was trained for a model of another family or size."""
    for name, here in model_sizes(parts).items():
        trained = described["model"].get(name)
        if trained != here:
            raise UsageError(
                f"the adapter in {folder} was trained for a model with {name} {trained}, this one has {here}; "
                "use --adapter none or an adapter for this model."
            )


def load_weights(folder: str | Path, injection: nn.Module, partly: bool = False) -> None:
    """Copy an adapter's weights into `injection`.

    Args:
        partly: what the adapter lacks stays as it is, and what it has besides is left, to train on from an adapter with other
            settings.
    Raises:
        WorkError: the file is missing or cut short, its tensors are not those expected, or its hash is not the recorded one.
    """
    file, expected = Path(folder) / WEIGHTS_FILE, injection.state_dict()
    try:
        with safe_open(file, "pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
            if partly:
                shapes = {name: shape for name, shape in shapes.items() if name in expected}
            _check_shapes(file, shapes, expected, partly)
            weights = {name: stored.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{file} cannot be read ({error}); train or copy the adapter again.") from error
    if bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise WorkError(f"{file} holds values that are not numbers in {bad[0]}; train or copy the adapter again.")
    check_weights(folder)
    injection.load_state_dict({name: t.to(expected[name]) for name, t in weights.items()}, strict=not partly)


def check_weights(folder: str | Path) -> None:
    """Raise `WorkError` where an adapter's weights cannot be read, or are not those that were saved with its settings."""
    file, described = Path(folder) / WEIGHTS_FILE, Path(folder) / CONFIG_FILE
    recorded = json.loads(described.read_text(encoding="utf-8")).get("weights_sha256")
    try:
        with safe_open(file, "pt"):
            same = recorded is None or recorded == _sha256(file)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{file} cannot be read ({error}); train or copy the adapter again.") from error
    if not same:
        raise WorkError(
            f"{file} is not the file that was saved with its {CONFIG_FILE}; train or copy the adapter again."
        )


def _check_shapes(file: Path, shapes: dict[str, tuple[int, ...]], expected: dict[str, Tensor], partly: bool) -> None:
    """Raise `WorkError` where the tensors of a file, by its header, are not those expected; none was read yet."""
    for name, tensor in expected.items():
        if partly and name not in shapes:
            continue
        if shapes.get(name) != tuple(tensor.shape):
            raise WorkError(
                f"{file} has no tensor {name} of shape {tuple(tensor.shape)}; train or copy the adapter again."
            )
    if extra := set(shapes) - set(expected):
        raise WorkError(f"{file} has a tensor {min(extra)} that this adapter does not know.")


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def weights_digest(injection: nn.Module) -> str:
    """A short hash of an adapter's weights, which tells two trainings of the same folder apart."""
    digest = hashlib.sha256()
    for weight in injection.state_dict().values():
        digest.update(weight.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def shipped_adapter(fingerprint: str) -> Path | None:
    """Folder of the adapter inside this package that was trained for exactly this model, if any."""
    for file in sorted(SHIPPED.glob(f"*/{CONFIG_FILE}")):
        if json.loads(file.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
            return file.parent
    return None


def find_adapter(
    model: Any, adapter: str | Path | None, config: SharedConfig | None
) -> tuple[Path | None, dict[str, Any] | None]:
    """Folder and checked configuration of the adapter to load, or None twice for an untrained one.

    A named adapter that was trained for other weights is given, with a warning; one that ships and was trained with other
    settings than `config` is not, with a warning too. Its weights know nothing of `stored_bits`: those are taken from `config`.
    """
    if adapter is None or adapter == "none":
        return None, None
    parts = Parts(model)
    if adapter == "default":
        folder = shipped_adapter(fingerprint_of(model, parts))
        if folder is None:
            _warn_of_other_weights(parts)
            return None, None
    else:
        folder = fetched(str(adapter), (CONFIG_FILE, WEIGHTS_FILE)) if is_hub_name(adapter) else Path(adapter)
    described = read_adapter_config(folder)
    if config is not None:
        described["config"] = replace(described["config"], stored_bits=config.stored_bits)
    if config is not None and config != described["config"]:
        if adapter == "default":
            logger.warning(
                "the adapter that ships for %s is not used: it was trained with other settings than the config given.",
                described.get("base_model_name_or_path") or folder.name,
            )
            return None, None
        raise UsageError(
            f"the adapter in {folder} was trained with other settings than the config given; leave config out."
        )
    check_adapter(described, parts, folder)
    trained = described.get("fingerprint")
    if adapter != "default" and trained is not None and trained != fingerprint_of(model, parts):
        logger.warning(
            "the adapter in %s was trained for other weights (or another quantisation) of this family: "
            "measure before you trust it.",
            adapter,
        )
    return folder, described


def _warn_of_other_weights(parts: Parts) -> None:
    """Say where a model that no adapter ships for is of the family and sizes of one that has one."""
    for file in sorted(SHIPPED.glob(f"*/{CONFIG_FILE}")):
        described = json.loads(file.read_text(encoding="utf-8"))
        if described.get("model") == model_sizes(parts):
            logger.warning(
                "the adapter that ships for %s is not used: this model is of the same sizes, but has other weights.",
                described["base_model_name_or_path"],
            )
