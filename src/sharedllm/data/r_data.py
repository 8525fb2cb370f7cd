"""Texts in an R package's data (`data/Rdata.rdb`): vectors of lines, as R keeps objects that are loaded when they are asked for.

Layout, from R Internals, sections 1.8 and 1.17 (serialization formats; lazy loading): records follow each other, each a
length of 32 bits, big endian, and a zlib stream of so many bytes when unpacked. Unpacked, a record of XDR format is `X\\n`, three
versions (from version 3 on with the name of an encoding), and the object: flags whose lowest byte is its type, then its content.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from sharedllm.errors import WorkError

STRINGS, STRING, MISSING = (
    16,
    9,
    -1,
)  # types of a vector of strings and of a string; the length of one that is not there
MOST = 2**26  # bytes of a record, unpacked


def r_texts(data: bytes) -> dict[str, str]:
    """{first line: text} of every vector of strings; lines that follow each other are one paragraph.

    Raises WorkError when the file is not of this format.
    """
    texts: dict[str, str] = {}
    try:
        for record in _records(data):
            lines = _lines(record)
            title = next((line.strip() for line in lines if line.strip()), "")
            if title:
                texts[title] = re.sub(r"(?<=\S)[ \t]*\n[ \t]*(?=\S)", " ", "\n".join(lines)).strip() + "\n"
    except (zlib.error, struct.error, UnicodeDecodeError, IndexError) as error:
        raise WorkError(f"The R data cannot be read ({error}); expected a package's data/Rdata.rdb.") from error
    return texts


def _records(data: bytes) -> Iterator[bytes]:
    while data:
        (size,) = struct.unpack_from(">I", data)
        unpacker = zlib.decompressobj()
        record = unpacker.decompress(data[4:], MOST)
        if len(record) != size:
            raise WorkError(f"The R data has a record of {len(record)} bytes; its head says {size}.")
        yield record
        data = unpacker.unused_data


def _lines(record: bytes) -> list[str]:
    """The strings of a record that is a vector of them; none of another object."""
    if record[:2] != b"X\n":
        raise WorkError("The R data has a record that does not begin with X; expected R's XDR format.")
    (version,) = struct.unpack_from(">i", record, 2)
    at = 14
    if version >= 3:
        at += 4 + struct.unpack_from(">i", record, at)[0]
    flags, count = struct.unpack_from(">ii", record, at)
    if flags & 0xFF != STRINGS:
        return []
    at, lines = at + 8, []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", record, at)
        if flags & 0xFF != STRING or at + 8 + max(0, length) > len(record):
            raise WorkError("The R data has a vector that does not hold the strings it should.")
        lines.append("" if length == MISSING else record[at + 8 : at + 8 + length].decode())
        at += 8 + max(0, length)
    return lines
