"""What is read of a page of HTML."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharedllm.keep import untagged
from sharedllm.sources import read_source
from tests.source_files import ARTICLE, refusal, save


@pytest.mark.parametrize("name", ["a.html", "a.htm", "a.XHTML", "by-content.txt", "no-suffix"])
def test_html_gives_its_text_without_scripts_and_styles(tmp_path: Path, name: str) -> None:
    text = read_source(save(tmp_path, name, "<!DOCTYPE html>\n" + ARTICLE)).text
    assert text.splitlines() == [
        "On turtles",
        "Turtles are older than snakes, and outlive most of them.",
        "They carry cafés on their backs.",
    ]


@pytest.mark.parametrize("start", ["<html>", "\n <HTML lang='en'>", '<?xml version="1.0" encoding="UTF-8"?>\n<html>'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_html_is_recognised_by_how_it_starts(tmp_path: Path, start: str, encoding: str) -> None:
    page = start + "<body><p>Hello ż.</p><script>evil()</script></body></html>"
    assert read_source(save(tmp_path, "page", page.encode(encoding))).text == "Hello ż."


def test_html_in_an_encoding_it_declares(tmp_path: Path) -> None:
    page = '<html><head><meta charset="ISO-8859-1"></head><body><p>Un \x93caf\xe9\x94.</p></body></html>'
    assert read_source(save(tmp_path, "a.html", page.encode("latin-1"))).text == "Un “café”."


def test_html_where_trafilatura_finds_nothing_gives_its_plain_text(tmp_path: Path) -> None:
    page = "<footer><div>First <b>bold</b> line</div>second<br>third<style>x{}</style><script>evil()</script></footer>"
    path = save(tmp_path, "a.html", f"<html><head><title>T</title></head><body>{page}</body></html>")
    assert read_source(path).text == "First bold line\nsecond\nthird"


def test_html_still_gives_its_text_when_trafilatura_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise RecursionError

    monkeypatch.setattr("trafilatura.extract", broken)
    assert "Turtles are older" in read_source(save(tmp_path, "a.html", ARTICLE)).text


def test_a_book_in_html_keeps_its_chapter_titles_and_not_its_menu(tmp_path: Path) -> None:
    paragraph = "<p>Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail {}.{}.</p>"
    chapters = [f"<h2>CHAPTER {i}</h2>" + "".join(paragraph.format(i, j) for j in range(5)) for i in range(30)]
    body = "<nav><a href='/'>Site menu</a></nav>" + "".join(f"<div>{chapter}</div>" for chapter in chapters)
    text = read_source(save(tmp_path, "a.html", f"<html><body>{body}</body></html>")).text
    assert [title for title in text.splitlines() if title.startswith("CHAPTER")] == [f"CHAPTER {i}" for i in range(30)]
    assert text.count("Ishmael") == 150
    assert "Site menu" not in text


def test_html_with_a_text_of_more_than_10_mb_is_whole(tmp_path: Path) -> None:
    page = (
        "<html><body><pre>"
        + "line of text here, and on it goes for a while\n" * 240_000
        + "THE END</pre></body></html>"
    )
    assert len(page) > 10_500_000
    assert read_source(save(tmp_path, "a.html", page)).text.rstrip().endswith("THE END")


@pytest.mark.parametrize("page", ["<html><body><script>evil()</script></body></html>", "<!-- nothing -->", "<html>"])
def test_html_without_text_is_refused(tmp_path: Path, page: str) -> None:
    assert "no text" in refusal(save(tmp_path, "a.html", page))


def kept_of(path: Path) -> tuple[str, list[str]]:
    """The text of a page without its tags, and what stood between them."""
    text, spans = untagged(read_source(path).text)
    return text, [text[start:end] for start, end in spans]


def test_tags_of_what_is_kept_stay_around_the_same_words(tmp_path: Path) -> None:
    tagged = ARTICLE.replace("older than", "<keep>older</keep> than").replace("<p>They", "<p><keep>They")
    tagged = tagged.replace("backs.</p>", "backs.</p></keep>")
    assert tagged.count("keep>") == 4
    text, kept = kept_of(save(tmp_path, "a.html", tagged))
    assert text == read_source(save(tmp_path, "b.html", ARTICLE)).text
    assert kept == ["older", "They carry cafés on their backs."]


def test_tags_beside_a_script_are_not_lost_with_it(tmp_path: Path) -> None:
    script = "<script>t()</script>"
    for start, end in (("", script), (script, ""), (script, script)):
        page = ARTICLE.replace("<p>They", f"<keep>{start}<p>They").replace("backs.</p>", f"backs.</p>{end}</keep>")
        assert page.count("keep>") == 2
        _, kept = kept_of(save(tmp_path, "a.html", page))
        assert [piece.strip() for piece in kept] == ["They carry cafés on their backs."]


def test_tags_around_whole_blocks_keep_all_of_them(tmp_path: Path) -> None:
    paragraphs = "".join(
        f"<p>Paragraph {i} has enough words in it to be the main text of a page.</p>" for i in range(9)
    )
    first, rest = paragraphs[: paragraphs.index("<p>Paragraph 4")], paragraphs[paragraphs.index("<p>Paragraph 4") :]
    page = f"<html><body><article>{first}<keep>\n<div>{rest}</div>\n</keep></article></body></html>"
    _, kept = kept_of(save(tmp_path, "a.html", page))
    assert [piece.split(" has")[0] for piece in kept[0].splitlines()] == [f"Paragraph {i}" for i in range(4, 9)]


def test_a_page_whose_main_text_lacks_what_is_kept_is_taken_whole(tmp_path: Path) -> None:
    page = ARTICLE.replace("</body>", "<footer><p>/<keep>Opened at nine.</keep> \u27e6keep\u27e7</p></footer></body>")
    text, kept = kept_of(save(tmp_path, "a.html", page))
    assert kept == ["Opened at nine."] and "older than" in text and "/Opened at nine. \u27e6keep\u27e7" in text
