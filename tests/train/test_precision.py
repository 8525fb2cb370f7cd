"""A run computes in what the machine is fast with, but never in float16 unless it is told to."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from sharedllm import SharedLLM
from sharedllm.train.distributed import DistributedTrainer
from sharedllm.train.loop import Trainer
from sharedllm.train.precision import training_dtype
from tests.train.test_loop import recipe


@pytest.mark.parametrize(
    ("supported", "wanted", "dtype"),
    [
        (True, None, "bfloat16"),
        (False, None, "float32"),
        (False, "auto", "float32"),
        (False, "float16", "float16"),
        (False, "bfloat16", "bfloat16"),
    ],
)
def test_a_gpu_without_bfloat16_trains_in_float32(monkeypatch, supported, wanted, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert training_dtype("cuda:0", wanted) == dtype


class Loaded(Exception):
    """Instead of a model."""


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The dtypes that models are asked for in, on a machine that is fast with float16."""
    dtypes: list[str] = []

    def loaded(model, adapter, config, device, dtype):
        dtypes.append(dtype)
        raise Loaded

    monkeypatch.setattr(SharedLLM, "from_pretrained", loaded)
    monkeypatch.setattr("sharedllm.train.precision.choose_dtype", lambda device, wanted: SimpleNamespace(value=wanted or "float16"))  # fmt: skip
    return dtypes


@pytest.mark.parametrize(("wanted", "dtype"), [(None, "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")])
def test_one_process(tmp_path, asked, wanted, dtype):
    with pytest.raises(Loaded):
        Trainer(recipe(tmp_path, tmp_path, dtype=wanted))
    assert asked == [dtype]


@pytest.mark.parametrize(
    ("wanted", "launcher", "dtype"),
    [
        (None, None, "float32"),
        (None, "bfloat16", "bfloat16"),
        (None, "float16", "float32"),
        ("float16", None, "float16"),
        ("bfloat16", "float16", "bfloat16"),
    ],
)
@pytest.mark.parametrize("main", [True, False])
def test_several_processes(tmp_path, asked, caplog, wanted, launcher, dtype, main):
    """The launcher's float16 is not taken, which the main one says."""
    processes = SimpleNamespace(
        agree=lambda what, value: None, sharded=False, device=torch.device("cpu"), dtype=launcher, main=main
    )
    with pytest.raises(Loaded), caplog.at_level(logging.WARNING, "sharedllm.train"):
        DistributedTrainer(recipe(tmp_path, tmp_path, dtype=wanted), processes=processes)
    assert asked == [dtype]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (main and wanted is None and launcher == "float16")
    assert all("mixed precision fp16 is not used" in line for line in said)
