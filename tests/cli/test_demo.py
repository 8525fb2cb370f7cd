"""`demo` on a model whose window holds all that is read."""

from __future__ import annotations

import json

import pytest
import torch

from sharedllm.cli import main


def test_a_text_that_fits_the_window_is_read_all_the_same(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr("sharedllm.demo.reference_text", lambda count, enough: "The sky is blue. " * 24)
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--model", "model", "--adapter", "adapter", "--dtype", "float32", "--tokens", "400", "--json"])
    torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    figures = json.loads(out.splitlines()[-1])
    assert (figures["context_tokens"], figures["window"], figures["chunks"]) == (408, 512, 26)
    assert "reading: 408 of 408 tokens" in err
