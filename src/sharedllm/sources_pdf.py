"""PDF to its text layer; with `sources.py`, which says when a source is a PDF."""

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sharedllm.errors import UsageError
from sharedllm.quiet import quiet

if TYPE_CHECKING:
    from pypdf import PdfReader

_FORGET_SECONDS = 0.25


class _TooMuchText(MemoryError):
    """The character limit, met inside pypdf, which swallows every other exception raised within a form."""


def pdf_text(name: str, raw: bytes, max_characters: int) -> str:
    """The text of all pages, joined by blank lines.

    Raises `UsageError` when the file is broken, locked, scanned, or holds over `max_characters`.
    """
    with quiet("pypdf"):
        from pypdf import PdfReader
        from pypdf.errors import DependencyError

        try:
            reader = PdfReader(io.BytesIO(raw))
            if reader.is_encrypted and not reader.decrypt(""):
                raise UsageError(f"'{name}' is locked with a password: save a copy without it and read that copy.")
            pages = _pdf_pages(reader, max_characters)
        except UsageError:
            raise
        except MemoryError as error:
            raise UsageError(f"'{name}' expands to over {max_characters:,} characters or memory: split it.") from error
        except DependencyError as error:
            remedy = "run 'pip install cryptography', or save a copy without encryption"
            raise UsageError(f"'{name}' is encrypted in a way that needs another package: {remedy}.") from error
        except Exception as error:  # pypdf: "broken PDF files might cause other Exceptions"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"'{name}' is not a PDF that can be read (broken or cut short): {reason}.") from error
    if not pages:
        raise UsageError(f"'{name}' is a PDF without pages.")
    if not any(pages):
        raise UsageError(
            f"'{name}' has no text layer: its {len(pages)} page(s) are scanned images or drawings, and OCR is needed "
            "first (for example with ocrmypdf)."
        )
    return "\n\n".join(page for page in pages if page)


def _pdf_pages(reader: "PdfReader", max_characters: int) -> list[str]:
    """The text of each page; raises `_TooMuchText` once the pages and the forms drawn on them pass `max_characters`.

    pypdf bounds each stream of a file; here their sum is bounded, as a page can draw one form thousands of times. Forms
    are watched through `extract_xform_text`, because pypdf's own visitors make it parse drawings too, far slower.
    """
    from pypdf.generic import StreamObject

    room, forgot_at = max_characters, time.monotonic()

    def watch(extract: Callable[..., str]) -> Callable[..., str]:
        def watched(*args: Any, **kwargs: Any) -> str:
            nonlocal room, forgot_at
            text = extract(*args, **kwargs)
            room -= len(text)
            if room < 0:
                raise _TooMuchText
            if time.monotonic() - forgot_at >= _FORGET_SECONDS:
                # pypdf keeps every stream it has decoded, and a file of 1 MB can hold 1 GB of them.
                for item in reader.resolved_objects.values():
                    if isinstance(item, StreamObject):
                        item.decoded_self = None
                forgot_at = time.monotonic()
            return text

        return watched

    pages = []
    for page in reader.pages:
        setattr(page, "extract_xform_text", watch(page.extract_xform_text))  # noqa: B010 (a method of this one page)
        text = watch(page.extract_text)()
        # A broken font map gives NUL characters and halves of surrogate pairs, which no tokenizer takes.
        text = text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        pages.append(text.strip())
    return pages
