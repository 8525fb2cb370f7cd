"""`sharedllm lm-eval` where the harness is not installed."""

from __future__ import annotations

import sys

import pytest

from sharedllm.cli import main


def test_a_missing_harness_is_one_sentence_with_the_command_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as ended:
        main(["lm-eval", "--model", "sharedllm", "--tasks", "any"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "pip install 'sharedllm[lm-eval]'" in said and "pip install -e '.[lm-eval]'" in said
