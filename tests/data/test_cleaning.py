"""Cleaning: readable text comes out of HTML, POD, rst, code and the packed Bible; page furniture does not."""

from __future__ import annotations

import struct
import textwrap
import zlib

import pytest

from sharedllm.data.bible import lzw, unpack
from sharedllm.data.clean_code import clean_code
from sharedllm.data.clean_html import html_to_text, next_page
from sharedllm.data.clean_pod import pod_to_text
from sharedllm.data.clean_rst import rst_to_text, toctree
from sharedllm.data.filters import why_dropped
from sharedllm.data.order import reading_order
from sharedllm.data.r_data import r_texts
from sharedllm.errors import WorkError

PAGE = """<html><head><title>T</title><link rel="next" href="two.html#a" title="Two"/><style>p {}</style></head>
<body><div class="navheader"><a href="x">Prev</a> <a href="y">Next</a></div>
<h2 class="title">1.1. The <code>cp</code>
 command<a class="headerlink" href="#x">¶</a></h2>
<p>Copies &lt;files&gt; &amp; folders.<br/>See also <a href="mv">mv</a>.</p>
<ul><li><p>first</p></li><li>second<ol><li>deep</li><li>deeper</li></ol></li></ul>
<dl><dt><code>-r</code></dt><dd><p>Recursive.</p></dd></dl>
<pre>$ cp  a \\
    b</pre>
<table><tr><th>name</th><th>use</th></tr><tr><td><p>a</p></td><td><p>b</p></td></tr></table>
<script>var x = 1;</script><div class="navfooter">Home</div></body></html>"""


def test_html_keeps_structure_and_drops_furniture() -> None:
    assert html_to_text(PAGE) == textwrap.dedent("""\
        # 1.1. The cp command

        Copies <files> & folders. See also mv.

        - first
        - second
          1. deep
          2. deeper

        -r
            Recursive.

            $ cp  a \\
                b

        name | use
        a | b
        """).replace("# 1.1.", "## 1.1.")


@pytest.mark.parametrize("html", ["", "<p>", "</div></p>text", "<ul><li>a<li>b</ul>", "<td>cell", "<pre>"])
def test_broken_html_is_read_as_far_as_it_goes(html: str) -> None:
    text = html_to_text(html)
    assert all(word in text for word in ("text", "a", "cell") if f">{word}" in html)


def test_pages_are_read_along_their_next_links() -> None:
    assert next_page(PAGE) == "two.html"
    assert next_page("<html><head><title>x</title></head></html>") is None
    link = '<head><link rel="next" href="{}"/></head>'
    pages = {"m/a.html": "last", "m/b.html": link.format("c.html"), "m/c.html": link.format("a.html"), "m/z.html": ""}
    assert reading_order(pages) == ["m/b.html", "m/c.html", "m/a.html", "m/z.html"]


def test_pages_that_link_in_a_circle_are_each_read_once() -> None:
    link = '<head><link rel="next" href="{}"/></head>'
    assert reading_order({"a.html": link.format("b.html"), "b.html": link.format("a.html")}) == ["a.html", "b.html"]


def test_rst_chapters_follow_the_toctree() -> None:
    index = ".. toctree::\n   :maxdepth: 1\n\n   zebra\n   The Apple <apple.rst>\n\nAfter.\n"
    assert toctree(index) == ["zebra", "apple"]
    texts = {"d/apple.rst": "", "d/extra.rst": "", "d/index.rst": index, "d/zebra.rst": ""}
    assert reading_order(texts) == ["d/index.rst", "d/zebra.rst", "d/apple.rst", "d/extra.rst"]


def test_pod_is_resolved() -> None:
    pod = textwrap.dedent("""\
        code that is not read

        =head2 The B<sort> function X<sort>

        Use C<< $a <=> $b >> or L<perlop/"Equality">; see L<the
        FAQ|perlfaq4>. E<lt>nothingE<gt> I<is C<nested>>.

            verbatim  <kept>

        =over 4

        =item *

        A bullet.

        =item -w

        Warns.

        =back

        =begin html

        <p>not read</p>

        =end html

        =cut

        more code
        """)
    assert pod_to_text(pod) == textwrap.dedent("""\
        ## The sort function

        Use $a <=> $b or Equality in perlop; see the FAQ. <nothing> is nested.

            verbatim  <kept>

        - A bullet.

        - -w

        Warns.
        """)


@pytest.mark.parametrize(
    ("pod", "text"),
    [
        ("", ""),
        ("=head1", "#\n"),
        ("=pod\n\nB<never closed", "never closed\n"),
        ("=pod\n\nmarked S<<-- HERE> so", "marked <-- HERE so\n"),
    ],
)
def test_odd_pod(pod: str, text: str) -> None:
    assert pod_to_text(pod).replace("# \n", "#\n") == text


def test_rst_drops_what_only_the_builder_reads() -> None:
    rst = textwrap.dedent("""\
        .. SPDX-License-Identifier: GPL-2.0
        .. _label:

        Title
        =====

        See :ref:`the other page <other>` and :c:func:`kmalloc`.

        .. code-block:: c
           :caption: x

           int a;

        .. list-table:: Sizes
           :header-rows: 1

           * - name
             - size
           * - a
             - 1,
               about

        .. image:: x.png
           :width: 3
        """)
    assert rst_to_text(rst) == textwrap.dedent("""\
        Title
        =====

        See the other page and kmalloc.

           int a;

        Sizes

        name | size
        a | 1, about
        """)


@pytest.mark.parametrize(
    ("rst", "text"),
    [
        ("..\n\n   kept\n", "kept\n"),
        ("- item\n\n  ..  \n\n     kept\n", "- item\n\n     kept\n"),
        ("..\n   dropped\n\n   and this\n\nkept\n", "kept\n"),
        (".. dropped\n\n   and this\n\nkept\n", "kept\n"),
        ("kept\n\n..", "kept\n"),
    ],
)
def test_an_empty_comment_ends_at_a_blank_line(rst: str, text: str) -> None:
    """docutils takes what is indented after one for a quotation."""
    assert rst_to_text(rst) == text


def test_code_loses_its_licence_header_only() -> None:
    assert clean_code("# Copyright 2020 X\n# Licensed so\n\nimport a  \n# Copyright of b\n") == (
        "import a\n# Copyright of b\n"
    )
    assert clean_code("#!/bin/sh\n# what it does\nx\n") == "#!/bin/sh\n# what it does\nx\n"


def test_poor_files_are_dropped_and_so_is_the_standard_library() -> None:
    code = "\n".join(f"def function_{name}(first, second): return first + second" for name in "abcdefghij")
    with open(textwrap.__file__, encoding="utf-8") as handle:
        library = handle.read()
    own = "\n".join(f"    own_name_{name} = compute_something_else({name!r})  # a note" for name in "abcdefghijklmnop")
    assert why_dropped(code, is_code=True) is None
    assert why_dropped("x = 1\n", is_code=True) == "short"
    assert why_dropped("x" * 400, is_code=True) == "long lines"
    assert why_dropped("A paragraph on one line. " * 30, is_code=False) is None
    assert why_dropped("0.123, 0.456,\n" * 50, is_code=True) == "digits"
    assert why_dropped(library, is_code=True) == "standard library"
    assert why_dropped(own * 40 + library[3000:5000], is_code=True) == "standard library"


def compress(text: bytes) -> bytes:
    """An LZW stream of nine-bit codes, which is what `compress` writes for a text too short to need wider ones."""
    table = {bytes([value]): value for value in range(256)}
    codes, word = [], b""
    for value in text:
        longer = word + bytes([value])
        if longer in table:
            word = longer
        else:
            codes.append(table[word])
            table[longer] = len(table) + 1  # 256 is the clear code
            word = bytes([value])
    codes.append(table[word])
    return sum(code << (9 * place) for place, code in enumerate(codes)).to_bytes((9 * len(codes) + 7) // 8, "little")


def test_packed_text_is_unpacked() -> None:
    text = b"Ge1:1 In the beginning, in the beginning, aaaaaaaaaa.\n"
    assert lzw(compress(text), len(text)) == text
    start = 92 + 4 * 2
    stream = compress(text)
    packed = b"EC02".ljust(84, b"\0") + struct.pack(">4I", len(text), 1, start, start + len(stream)) + stream
    assert unpack(packed) == text
    for wrong in (b"EC01" + packed[4:], packed[:95], b"EC02".ljust(84, b"\0") + struct.pack(">4I", 9, 999, 0, 0)):
        with pytest.raises(WorkError, match="packed Bible text"):
            unpack(wrong)


def r_record(lines: list[str | None], kind: int = 16, version: int = 3) -> bytes:
    """A record of R's data as R writes it: a vector of strings, compressed."""
    head = b"X\n" + struct.pack(">iii", version, 0x40201, 0x30500)
    head += struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    body = struct.pack(">ii", kind, len(lines))
    for line in lines:
        raw = b"" if line is None else line.encode()
        body += struct.pack(">ii", 0x40009, -1 if line is None else len(raw)) + raw
    return struct.pack(">I", len(head + body)) + zlib.compress(head + body)


def test_texts_of_an_r_package_are_its_vectors_of_lines() -> None:
    first = r_record(["EMMA", "", "  Chapter 1", "", "Emma Woodhouse,", "handsome and caf\u00e9.", None, "", "Next."])
    second = r_record(["A second", "book"], version=2)
    assert r_texts(first + r_record([], kind=19) + second) == {
        "EMMA": "EMMA\n\n  Chapter 1\n\nEmma Woodhouse, handsome and caf\u00e9.\n\n\nNext.\n",
        "A second": "A second book\n",
    }


@pytest.mark.parametrize(
    "data",
    [
        b"not R's",
        r_record(["one", "two"])[:-5],
        struct.pack(">I", 9) + zlib.compress(b"X\n"),
        struct.pack(">I", 4) + zlib.compress(b"RDX3"),
        r_record(["one"])[:3],
    ],
)
def test_broken_r_data_is_one_sentence(data: bytes) -> None:
    with pytest.raises(WorkError, match="R data"):
        r_texts(data)
