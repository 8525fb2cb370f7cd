"""What the commands tell where a name is no name, an encoding is narrow, and no document could be read."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from sharedllm.cli import ask, common
from tests.cli.test_cli import MODEL, home, run  # noqa: F401

SAID = "caf\u00e9 \u2192 \U0001f422"


@pytest.fixture
def narrow(monkeypatch):
    """The bytes of a stdout that takes ASCII alone."""

    def start() -> io.BytesIO:  # in the test itself: pytest puts its own stdout there when one begins
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
        return raw

    return start


def test_what_stdout_cannot_encode_is_escaped(narrow):
    out = narrow()
    common.tell(SAID)
    common.print_json({"answer": SAID})
    line, told = out.getvalue().decode("ascii").splitlines()
    assert line == "caf\\xe9 \\u2192 \\U0001f422" and json.loads(told) == {"answer": SAID}


def test_an_answer_that_stdout_cannot_encode_is_escaped(narrow):
    out = narrow()
    answer = SimpleNamespace(text=SAID, slots=0, compressed=False, search_seconds=0.0, generate_seconds=0.0)
    ask._show(SimpleNamespace(adapter="a"), SimpleNamespace(tokens=1), answer, [], 0.0)
    assert out.getvalue().decode("ascii").startswith("caf\\xe9")


def test_a_text_in_the_place_of_a_name_is_told_in_short(run):  # noqa: F811
    code, out, err = run("ask", "x" * 5000, "-q", "What?", *MODEL, "--max-new-tokens", "2")
    assert code == 2 and "cannot be read" in err and len(err) < 400 and out == ""


def test_reading_no_document_at_all_has_failed(run, tmp_path):  # noqa: F811
    for i in range(6):
        (tmp_path / f"{i}.bin").write_bytes(b"\x00\xff" * 50)
    where = tmp_path / "kept"
    code, out, err = run("encode", f"{tmp_path}/*.bin", "--separate", "-o", str(where), *MODEL, "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 1 and (told["documents"], told["failed"]) == (0, 6)
    assert f"1 more, each with its reason in {where}/documents.jsonl" in err
    assert "none of the documents could be read" in err and "Traceback" not in err
