"""Cuts the text of `sharedllm eval real` out of its Debian package: run `python tools/build_real.py`.

The Jargon File 4.4.7 is in the public domain. Taken are its introduction without chapter 4, and the appendices A and C:
stories, history and customs. The hash in `questions.yaml` says whether the text is still the one the questions were written for.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from sharedllm.data.fetch import default_cache, fetch
from sharedllm.data.recipe import SourceSpec
from sharedllm.evaluate import real

MEMBER = "usr/share/doc/jargon-text/jargon.txt.gz"
SPEC = SourceSpec(
    name="jargon-file", type="debian", package="jargon-text", version="4.4.7-4.1", kind="prose",
    licence="public-domain", split="heldout", include=(MEMBER,),
)  # fmt: skip
TAKEN = [f"Chapter {n}." for n in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11)] + ["Appendix A.", "Appendix C."]


def cut(text: str) -> str:
    """The parts in `TAKEN`, without the margin of three spaces."""
    parts = re.split(
        r"^(?=(?:Chapter|Appendix|Part)\s[0-9A-Z]+\.|\s+Part II)", text.replace("\xa0", " "), flags=re.MULTILINE
    )
    taken = [part for part in parts if part.startswith(tuple(TAKEN))]
    return "\n\n".join(re.sub(r"^ {1,3}", "", part, flags=re.MULTILINE).strip() for part in taken) + "\n"


if __name__ == "__main__":
    found = fetch(SPEC, default_cache(), Path()).members[MEMBER]
    file = real.FOLDER / "jargon.txt"
    file.write_text(cut(gzip.decompress(found).decode("utf-8")), encoding="utf-8")
    print(f"{file}: {len(real.load().questions)} questions")
