"""Every example in the README and in docs/ is run or parsed; sentences and figures quoted there are the code's and the log's."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate import dispatch_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sharedllm import SharedLLM, publish
from sharedllm.collection.engines import LocalEngine
from sharedllm.collection.read import read_collection
from sharedllm.collection.worker import Worker
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model
from tests.docs_examples import PAGES, ROOT, Block, blocks, commands, launches, parse, parse_launch

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [(block, arguments) for block in BLOCKS for arguments in commands(block)]
LAUNCHES = [(block, arguments) for block in BLOCKS for arguments in launches(block)]
OPTIONAL = (
    "torchao",
    "peft",
)  # where one is not installed, blocks that import it are compiled alone, and the page is skipped
NOT_RUN = {  # how a block begins: why it is not run here
    "from openai import OpenAI": "needs a server; tests/serve/test_api.py asks one in the same way",
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A folder with the files the examples name, where the model that is loaded is a tiny random one."""
    real = SharedLLM.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: type[SharedLLM], *arguments: Any, **settings: Any) -> SharedLLM:
        model = inspect.signature(real).bind(cls, *arguments, **settings).arguments.get("model")
        small = model if isinstance(model, nn.Module) else tiny_model(max_position_embeddings=256)
        return randomize(
            real(cls, small, adapter="none", config=replace(CONFIG, fine_chunks=1), tokenizer=byte_tokenizer())
        )

    pushed = inspect.signature(publish.pushed)

    def nowhere(*arguments: Any) -> str:  # nothing leaves this machine
        pushed.bind(*arguments)
        return ""

    # What these two take of transformers does not show in their signatures; here it is what the examples may use.
    def loaded(name: str, dtype: Any = None, device_map: Any = None, offload_folder: str | None = None) -> Any:
        small = tiny_model(max_position_embeddings=256)
        return dispatch_model(small, {"": "cpu"}, main_device="cpu", force_hooks=True) if device_map else small

    monkeypatch.setattr(SharedLLM, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: byte_tokenizer())
    monkeypatch.setattr(publish, "pushed", nowhere)
    monkeypatch.chdir(tmp_path)
    Path("results.jsonl").touch()
    for name in ("book.txt", "notes.md"):
        Path(name).write_text(f"This is {name}. " + " ".join(f"Box {i} holds a letter." for i in range(12)))
    read_collection(["book.txt", "notes.md"], "library", LocalEngine(Worker(SharedLLM.from_pretrained(), "library")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page, tiny):
    names: dict[str, Any] = {}
    missing: set[str] = set()
    for block in BLOCKS:
        if block.page != page.name or block.language != "python" or block.code.startswith(tuple(NOT_RUN)):
            continue
        code = compile(block.code, f"{block.page}, line {block.line}", "exec")
        lacks = {name for name in OPTIONAL if f"\nfrom {name}" in f"\n{block.code}" and find_spec(name) is None}
        missing |= lacks
        if not lacks:
            exec(code, names)
    if missing:
        pytest.skip(f"the blocks that import {' and '.join(sorted(missing))} were compiled alone; `make test-extras`")


@pytest.mark.parametrize(
    "wrong",
    [
        "SharedLLM.from_pretrained('a', adaptor='b')",
        "SharedLLM.from_pretrained('a', 'b', None, None, None, None, 8, 'c')",
        "AutoModelForCausalLM.from_pretrained('a', devicemap='auto')",
        "AutoTokenizer.from_pretrained('a', 'b')",
    ],
)
def test_an_example_with_a_wrong_argument_would_fail(tiny, wrong):
    with pytest.raises(TypeError):
        eval(wrong)


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
    ("block", "arguments"), LAUNCHES, ids=lambda x: x.page if isinstance(x, Block) else " ".join(x)[-60:]
)
def test_launches_parse(block, arguments):
    try:
        parse_launch(arguments)
    except Exception as error:
        pytest.fail(f"{block.page}, block at line {block.line}: accelerate launch {' '.join(arguments)}: {error}")


def test_launches_of_all_pages_are_found():
    assert {block.page for block, _ in LAUNCHES} == {"README.md", "DISTRIBUTED.md", "ray.md", "train.md"}


@pytest.mark.parametrize(
    "wrong",
    [
        ["--config_file", "examples/accelerate/cpus.yaml", "-m", "sharedllm.train", "default"],
        ["--config_fil", "examples/accelerate/cpu.yaml", "--num_proceses", "2", "-m", "sharedllm.train", "default"],
        ["-m", "sharedllm.train", "default", "step=1"],
        ["-m", "sharedllm.train", "defualt"],
        ["-m", "sharedllm.reading", "a.txt", "--out", "b"],
        ["-m", "sharedllm.readings", "a.txt", "-o", "b"],
        ["sharedllm.train", "default"],
    ],
)
def test_a_launch_that_would_fail_is_refused(wrong):
    with pytest.raises(Exception, match=r"(?i)no such|not exist|no setting|no recipe|does not take|no module"):
        parse_launch(wrong)


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


def test_extras_that_are_named_are_those_of_the_package():
    """By sentences of the code, and in the table of what a user may install."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src/sharedllm").rglob("*.py"))
    said = re.findall(r"to_install\([\"']([\w-]+)", source)
    assert said and set(said) <= set(extras)
    assert source.count("sharedllm[") == 1, "only `to_install` says how"
    start = (ROOT / "docs/start.md").read_text(encoding="utf-8")
    table = start[start.index("comes with extras") : start.index("## Ask a file")]
    assert set(extras) <= set(re.findall(r"`([\w-]+)`", table))


def test_every_file_of_the_package_is_in_the_table_of_files():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = [
        p.name for p in (ROOT / "src/sharedllm").iterdir() if p.suffix == ".py" or (p.is_dir() and p.name[0] != "_")
    ]
    missing = [name for name in parts if name != "__init__.py" and f"](src/sharedllm/{name})" not in table]
    assert not missing, "CONTRIBUTING.md, Which file holds what"


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
