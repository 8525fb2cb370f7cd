"""The packed text of Debian's bible-kjv-text: a table of windows, each compressed with LZW as `compress` does.

File layout (big endian): bytes 0-3 `EC02`; 84-87 the window size in bytes; 88-91 the number of windows, N;
then N + 1 offsets of 32 bits, the last one the end. A window is a `compress` stream (16 bits, block mode); the first
one's offset points behind its three magic bytes and the others have none.
Unpacked, a line is a verse: `Ge1:1 In the beginning ...`.
"""

from __future__ import annotations

import re
import struct

from sharedllm.errors import WorkError

MAGIC = b"EC02"
CLEAR, FIRST_FREE, MAX_BITS = 256, 257, 16
BOOKS = (
    "Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth 1_Samuel 2_Samuel 1_Kings 2_Kings 1_Chronicles "
    "2_Chronicles Ezra Nehemiah Esther Job Psalms Proverbs Ecclesiastes Song_of_Solomon Isaiah Jeremiah Lamentations "
    "Ezekiel Daniel Hosea Joel Amos Obadiah Jonah Micah Nahum Habakkuk Zephaniah Haggai Zechariah Malachi Matthew Mark "
    "Luke John Acts Romans 1_Corinthians 2_Corinthians Galatians Ephesians Philippians Colossians 1_Thessalonians "
    "2_Thessalonians 1_Timothy 2_Timothy Titus Philemon Hebrews James 1_Peter 2_Peter 1_John 2_John 3_John Jude "
    "Revelation"
).split()


def bible_books(data: bytes) -> dict[str, str]:
    """{book name: text}, in order; verses run on, a chapter is one paragraph under its heading.

    Raises WorkError when the file is not of this format.
    """
    books: dict[str, list[str]] = {}
    order: list[str] = []
    chapter = ""
    for line in unpack(data).decode("ascii", errors="replace").split("\n"):
        verse = re.match(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line)
        if verse is None:
            continue
        short, number, _, text = verse.groups()
        if short not in books:
            books[short] = []
            order.append(short)
            chapter = ""
        if number != chapter:
            chapter = number
            books[short].append(f"\n\n## Chapter {number}\n\n{text}")
        else:
            books[short].append(" " + text)
    if len(order) != len(BOOKS):
        raise WorkError(f"The packed Bible text holds {len(order)} books; expected {len(BOOKS)}.")
    names = [name.replace("_", " ") for name in BOOKS]
    return {name: f"# {name}" + "".join(books[short]) + "\n" for name, short in zip(names, order, strict=True)}


def unpack(data: bytes) -> bytes:
    """The whole unpacked text. Raises WorkError when the header or a window is not as expected."""
    if data[:4] != MAGIC or len(data) < 96:
        raise WorkError("The packed Bible text does not begin with EC02; expected Debian's bible.data.")
    window, count = struct.unpack(">II", data[84:92])
    if len(data) < 96 + 4 * count:
        raise WorkError(f"The packed Bible text is cut short: no room for the offsets of {count} windows.")
    offsets = struct.unpack(f">{count + 1}I", data[92 : 96 + 4 * count])
    parts = [lzw(data[start:end], window) for start, end in zip(offsets, offsets[1:], strict=False)]
    return b"".join(parts)


def lzw(data: bytes, limit: int) -> bytes:
    """Unpacks a `compress` stream without its magic bytes, up to `limit` bytes (9 to 16 bits a code, block mode)."""
    table: list[bytes] = [bytes([value]) for value in range(256)] + [b""]
    out: list[bytes] = []
    bits, at, size, last = 9, 0, 0, b""
    total, group = len(data) * 8, 0  # codes come in groups of eight: a change of width skips to the group's end
    while at + bits <= total and size < limit:
        low = at >> 3
        code = (int.from_bytes(data[low : low + 4], "little") >> (at & 7)) & ((1 << bits) - 1)
        at, group = at + bits, (group + 1) % 8
        if code == CLEAR:
            at, group = at + bits * (-group % 8), 0
            table, bits, last = table[:FIRST_FREE], 9, b""
            continue
        if code < len(table):
            entry = table[code]
        elif code == len(table) and last:
            entry = last + last[:1]
        else:
            raise WorkError("The packed Bible text holds a code that no LZW stream can hold; the file is damaged.")
        out.append(entry)
        size += len(entry)
        if last and len(table) < 1 << MAX_BITS:
            table.append(last + entry[:1])
        last = entry
        if len(table) >= 1 << bits and bits < MAX_BITS:
            at, group, bits = at + bits * (-group % 8), 0, bits + 1
    return b"".join(out)
