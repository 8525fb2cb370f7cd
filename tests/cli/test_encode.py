"""`sharedllm encode` and asking what it keeps: several sources, adding, removing, going on, saying what it takes."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.cli.test_cli import MODEL, TEXT, home, run  # noqa: F401

OTHER = " ".join(str(7919 * i**3) for i in range(100))  # no 16 bytes of it twice, so no chunk is saved


@pytest.fixture
def texts(home, tmp_path, monkeypatch):  # noqa: F811
    (home / "other.txt").write_text(OTHER)
    return tmp_path / "kept"


def test_sources_are_added_removed_and_asked_in_any_mix(run, texts):  # noqa: F811
    def encode(*arguments):
        code, out, err = run("encode", *arguments, "-o", str(texts), *MODEL, "--json")
        assert code == 0, err
        return json.loads(out.splitlines()[-1]), err

    first, _ = encode("long.txt")
    assert first["documents"] == {"long.txt": len(TEXT)} and first["context_tokens"] == len(TEXT)
    plan, _ = encode("long.txt", "other.txt", "--dry-run", "--append", "--seed", "7")
    assert (plan["context_tokens"], plan["new_tokens"]) == (len(TEXT) + len(OTHER), len(OTHER))
    assert plan["encode_seconds"] > 0 and plan["documents"] == {"long.txt": len(TEXT)}
    both, said = encode("other.txt", "--append")
    assert both["documents"] == {"long.txt": len(TEXT), "other.txt": len(OTHER)}
    assert plan["bytes"] < both["bytes"] - first["bytes"] < plan["bytes"] + 20_000  # headers, and names of chunks
    again, said = encode("long.txt", "other.txt")
    assert again["bytes"] == both["bytes"] and "reading" not in said
    left, _ = encode("--remove", "long.txt")
    assert left["documents"] == {"other.txt": len(OTHER)}
    question = ("-q", "What colour?", *MODEL, "--max-new-tokens", "4", "--json")
    run("encode", "long.txt", "-o", f"{texts}2", *MODEL)
    code, out, err = run("ask", f"{texts}2", str(texts), "short.txt", *question)
    assert code == 0, err
    assert json.loads(out)["context_tokens"] == len(TEXT) + len(OTHER) + 5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "either sources to read or --remove"),
        (("long.txt", "--remove", "long.txt"), "either sources to read or --remove"),
        (("--remove", "long.txt"), "not a saved context"),
        (("model",), "choose another folder"),
        *(
            (("--remove", "long.txt", option), "--remove goes alone")
            for option in ("--append", "--dry-run", "--keep-tags", "--compact")
        ),
        (("--remove", "long.txt", "--stored-bits", "8"), "--remove goes alone"),
        (("long.txt", "--stored-bits", "5"), "--stored-bits is 5; it must be one of 16, 8, 4"),
        (("long.txt", "--max-mb", "3"), "add --separate"),
        (("long.txt", "--separate", "--keep-tags"), "or --keep-tags"),
        *(
            (("long.txt", "--separate", "--max-mb", wrong), f"--max-mb is {wrong}")
            for wrong in ("nan", "inf", "-inf", "0", "-1")
        ),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(run, texts, arguments, word):  # noqa: F811
    target = "model" if arguments == ("model",) else str(texts)
    code, out, err = run(
        "encode",
        *(a for a in arguments if a != "model"),
        *(["long.txt"] if target == "model" else []),
        "-o",
        target,
        *MODEL,
    )
    assert code == 2 and word in err and out == "" and "Traceback" not in err
    assert not texts.exists()


def test_removing_that_is_refused_removes_nothing(run, texts):  # noqa: F811
    run("encode", "long.txt", "other.txt", "-o", str(texts), *MODEL)
    before = (texts / "context.json").read_bytes()
    for option in ("--dry-run", "--append", "--keep-tags", "--compact"):
        code, out, err = run("encode", "--remove", "other.txt", option, "-o", str(texts), *MODEL)
        assert code == 2 and err.count("\n") == 1 and out == ""
    assert (texts / "context.json").read_bytes() == before


def test_what_is_kept_has_as_many_bits_as_are_asked_for(run, texts):  # noqa: F811
    sizes = []
    for bits in ("16", "8", "4"):
        code, out, err = run("encode", "long.txt", "-o", str(texts), "--stored-bits", bits, *MODEL, "--json")
        assert code == 0, err
        sizes.append(json.loads(out.splitlines()[-1])["bytes"])
    assert sizes[0] > sizes[1] > sizes[2]
    code, out, err = run("ask", str(texts), "-q", "What colour?", *MODEL, "--max-new-tokens", "2", "--json")
    assert code == 0 and json.loads(out)["slots"] > 0, err


@pytest.mark.parametrize("separate", [(), ("--separate",)])
def test_what_is_kept_in_the_folder_that_is_read_is_no_text_of_it(run, tmp_path, separate):  # noqa: F811
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(OTHER)
    said = []
    for _ in range(2):
        command = ("encode", f"{tmp_path}/notes", "-o", f"{tmp_path}/notes/kept", *separate, *MODEL, "--json")
        code, out, err = run(*command)
        assert code == 0, err
        said.append(json.loads(out.splitlines()[-1]))
    assert [s["context_tokens"] for s in said] == [len(OTHER)] * 2 and not said[1].get("failed")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name of a file is text")
def test_names_that_are_no_utf8_are_told(run, tmp_path):  # noqa: F811
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    with open(name, "w") as file:
        file.write(OTHER)
    code, out, err = run("encode", name, "-o", f"{name}.kept", *MODEL, "--json")
    assert code == 0, err
    assert json.loads(out)["documents"] == {name: len(OTHER)}
    code, out, err = run("encode", name, "-o", f"{name}.kept", *MODEL)
    assert code == 0 and "caf\\udce9" in out, err
