"""A user's own files as they come: in other encodings, with odd names, rows cut apart, chats that a template refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharedllm.data import DataRecipe, TokenFolder, build
from sharedllm.data.documents import decode
from sharedllm.errors import UsageError

from .helpers import sentences

Make = Callable[..., DataRecipe]
BASE = {"type": "files", "kind": "prose", "licence": "CC0-1.0"}


def built(tmp_path: Path, make_recipe: Make, tokenizer: Any, *paths: str) -> tuple[list[str], list[str]]:
    """Texts and names of the documents that some files become."""
    build(make_recipe({"mine": {**BASE, "paths": list(paths)}}), tmp_path / "out", tokenizer)
    folder = TokenFolder.open(tmp_path / "out", tokenizer)
    documents = folder.documents()
    return [tokenizer.decode(folder.tokens(doc)) for doc in documents], [doc.name for doc in documents]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_text_is_read_in_the_encoding_that_its_mark_says(encoding: str) -> None:
    text = "Несколько слов, and a few more.\n"
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    assert decode((mark + text).replace("\n", "\r\n").encode(encoding)) == text


def test_text_that_is_neither_is_read_as_windows_writes_it_or_as_latin_1() -> None:
    assert decode("Größe\n".encode("latin-1")) == "Größe\n"
    assert decode("“Größe” – 5 €\n".encode("cp1252")) == "“Größe” – 5 €\n"
    assert decode(b"caf\xe9 \x81\n") == "café \x81\n", "which Windows-1252 has no character for"
    assert decode(b"\xff\xfea") == "\ufffd", "half a character at the end"


def test_a_damaged_byte_leaves_the_rest_of_a_file_as_it_is() -> None:
    text = "Несколько слов – “and” a few more.\n"
    cut = text.encode()[:-8] + b"\xff" + text.encode()[-8:]
    assert decode(cut) == text[:-8] + "\ufffd" + text[-8:]
    assert decode(text.encode()[:9]) == "Неск\ufffd", "cut apart at the end"
    assert decode(b"\xef\xbb\xbfplain \xff text\n") == "plain \ufffd text\n", "with the mark of UTF-8"


def test_files_that_are_no_clean_text_are_counted(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    long = sentences("forests") + "Größe, Länge.\n"
    (texts / "broken.txt").write_bytes(long.encode() + b"\xff\n")
    (texts / "old.txt").write_bytes(long.replace("forests", "winds").encode("latin-1"))
    (texts / "clean.txt").write_text(long.replace("forests", "waves"), encoding="utf-8")
    lines: list[str] = []
    recipe = make_recipe({"mine": {**BASE, "paths": ["broken.txt", "old.txt", "clean.txt"]}})
    build(recipe, tmp_path / "out", tokenizer, progress=lines.append)
    assert lines[-1].endswith("(files left out: none; read as Windows-1252 or Latin-1: 1; read as broken UTF-8: 1)")
    folder = TokenFolder.open(tmp_path / "out", tokenizer)
    found = [tokenizer.decode(folder.tokens(doc)) for doc in folder.documents()]
    assert len(found) == 3 and all("Größe, Länge.\n" in text for text in found)


def test_rows_are_cleaned_as_files_are(tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path) -> None:
    """Else neither a repeated paragraph nor one that is held out would be known by its other line ends."""
    paragraphs = sentences("islands").split("\n\n")  # held out
    leak = "\r\n\r\n".join([*sentences("clouds").split("\n\n"), paragraphs[3], *sentences("winds").split("\n\n")])
    chat = {"messages": [{"role": "user", "content": "One\r\n  two\u0000  \r\nthree"}]}
    rows = [{"text": leak + "\u0000a \t\r\nb\tc"}, chat]
    (texts / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    sources = {
        "rows": {**BASE, "paths": ["rows.jsonl"]},
        "held": {**BASE, "paths": ["held.md"], "split": "heldout"},
    }
    build(make_recipe(sources), tmp_path / "out", tokenizer)
    folder = TokenFolder.open(tmp_path / "out", tokenizer)
    text, said = (tokenizer.decode(folder.tokens(doc)) for doc in folder.documents(source="rows"))
    assert paragraphs[3] not in text and "clouds" in text and "winds" in text
    assert "\r" not in text and "\x00" not in text and text.endswith("a\nb       c\n")
    assert said == "user: One\n  two  \nthree\n", "a chat is left as it was said, but for its line ends"


def test_short_chats_are_joined_with_chats_alone(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    """Each kind in its order, and what a text spells stays no special token."""
    chats = [
        [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "A number."}] for i in range(50)
    ]
    spelt = [
        {"text": f"One writes <|im_end|> at the end of chat {topic}. " + sentences(topic, 2)} for topic in ("a", "b")
    ]
    rows: list[dict[str, Any]] = [{"messages": chat} for chat in chats]
    rows[7:7], rows[30:30] = [spelt[0]], [spelt[1]]
    (texts / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = make_recipe({"rows": {**BASE, "paths": ["rows.jsonl"], "join_below": 1500}})
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    try:
        for name in ("out", "again"):
            build(recipe, tmp_path / name, tokenizer)
    finally:
        tokenizer.chat_template = None
    assert all(
        file.read_bytes() == (tmp_path / "again" / file.name).read_bytes() for file in (tmp_path / "out").iterdir()
    )
    folder, opened = TokenFolder.open(tmp_path / "out"), tokenizer.convert_tokens_to_ids("<|im_start|>")
    found = [folder.tokens(doc).tolist() for doc in folder.documents()]
    joined = [tokenizer.decode(ids) for ids in found if opened in ids]
    (text,) = (tokenizer.decode(ids) for ids in found if opened not in ids)
    assert len(joined) == 2 and all(len(chat) >= 1500 for chat in joined)
    said = "\n\n\n".join(joined)
    assert [said.index(f"What is {i}?") for i in range(50)] == sorted(said.index(f"What is {i}?") for i in range(50))
    assert said.count("<|im_start|>") == 100 and "Paragraph" not in said and "at the end of chat" not in said
    assert text.index("chat a") < text.index("chat b") and text.count("<|im_end|>") == 2


def test_rows_are_rows_however_the_files_ending_is_written(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    (texts / "ROWS.JSONL").write_text(json.dumps({"text": sentences("forests")}) + "\n")
    assert built(tmp_path, make_recipe, tokenizer, "ROWS.JSONL")[0] == [sentences("forests")]


def test_half_a_character_in_a_row_is_replaced(tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path) -> None:
    message = {"role": "user", "content": "cut \ud83d"}
    rows = [{"text": sentences("forests") + "cut \ud83d"}, {"messages": [message]}]
    (texts / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    text, chat = built(tmp_path, make_recipe, tokenizer, "rows.jsonl")[0]
    assert text == sentences("forests") + "cut \ufffd\n"
    assert chat == "user: cut \ufffd\n"


def test_a_chat_that_the_template_refuses_is_named(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    rows = [{"messages": [{"role": role, "content": "Hello."}]} for role in ("user", "system")]
    (texts / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    try:
        with pytest.raises(UsageError, match=r"Line 2 of rows\.jsonl .*System role not supported"):
            built(tmp_path, make_recipe, tokenizer, "rows.jsonl")
    finally:
        tokenizer.chat_template = None


def test_names_that_are_no_text_or_hold_other_line_ends(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    folder = texts / "odd"
    folder.mkdir()
    (folder / "one\u2028two\x85three.txt").write_text(sentences("forests"))
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text(sentences("winds"))
    except OSError:
        pytest.skip("names are always UTF-8 here")
    found, names = built(tmp_path, make_recipe, tokenizer, "odd")
    assert sorted(found) == [sentences("forests"), sentences("winds")]
    assert sorted(names) == ["odd/caf\\udce9.txt", "odd/one\u2028two\x85three.txt"]
