"""`sharedllm encode` and asking what it keeps: several sources, adding, removing, going on, saying what it takes."""

from __future__ import annotations

import json

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
    plan, _ = encode("long.txt", "other.txt", "--dry-run", "--append")
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
