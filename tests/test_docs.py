"""Every example in the README and in docs/ is run or parsed; sentences and figures quoted there are the code's and the log's."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sharedllm import SharedLLM
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model
from tests.docs_examples import PAGES, ROOT, Block, blocks, commands, parse

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [(block, arguments) for block in BLOCKS for arguments in commands(block)]
NOT_RUN = {  # how a block begins: why it is not run here
    "from openai import OpenAI": "needs a server; tests/serve/test_api.py asks one in the same way",
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A folder with the files the examples name, where the model that is loaded is a tiny random one."""
    real = SharedLLM.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: type[SharedLLM], model: Any = None, *_: Any, **__: Any) -> SharedLLM:
        small = tiny_model(max_position_embeddings=256)
        return randomize(
            real(cls, small, adapter="none", config=replace(CONFIG, fine_chunks=1), tokenizer=byte_tokenizer())
        )

    monkeypatch.setattr(SharedLLM, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr("sharedllm.publish.pushed", lambda *_: "")  # nothing leaves this machine
    monkeypatch.chdir(tmp_path)
    Path("results.jsonl").touch()
    for name in ("book.txt", "notes.md"):
        Path(name).write_text(f"This is {name}. " + " ".join(f"Box {i} holds a letter." for i in range(12)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page, tiny):
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if block.page != page.name or block.language != "python" or block.code.startswith(tuple(NOT_RUN)):
            continue
        exec(compile(block.code, f"{block.page}, line {block.line}", "exec"), names)


def test_what_is_not_run_is_there():
    assert all(any(block.code.startswith(start) for block in BLOCKS) for start in NOT_RUN)


@pytest.mark.parametrize(
    ("block", "arguments"), SHELL, ids=lambda x: x.page if isinstance(x, Block) else " ".join(x)[:60]
)
def test_commands_parse(block, arguments):
    try:
        parse(arguments)
    except Exception as error:
        pytest.fail(f"{block.page}, block at line {block.line}: sharedllm {' '.join(arguments)}: {error}")


@pytest.mark.parametrize(
    "wrong",
    [["ask", "a.txt", "--querstion", "x"], ["asks"], ["eval"], ["data", "biuld"], ["train", "default", "step=1"]],
)
def test_the_parser_refuses_what_the_command_line_refuses(wrong):
    with pytest.raises(Exception, match=r"(?i)no such|missing|no setting"):
        parse(wrong)


def test_targets_and_links_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_sentences_to_mend_are_the_codes_own():
    said = " ".join(_strings())
    quoted = re.findall(r"^> (.+)$", (ROOT / "docs/troubleshoot.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(quoted) > 10
    for sentence in quoted:
        assert sentence in said, f"no code says: {sentence}"


def test_figures_quoted_are_measured_ones():
    measured = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/LOG.md"))
    quoted = re.findall(r"\d+ %|\d+\.\d{2,}(?!\d)(?=[ ,.])", (ROOT / "docs/compare.md").read_text(encoding="utf-8"))
    assert quoted and all(figure in measured for figure in quoted), quoted


def _strings() -> list[str]:
    """Every text in the source, with … for what is filled in."""
    found = []
    for file in (ROOT / "src/sharedllm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))  # type: ignore[misc]
    return found
