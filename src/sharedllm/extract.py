"""The text of a file from strangers, taken out in a process of its own.

A file can be made to expand, or to take for ever; there it harms nothing but itself. And parsing does not hold up the
program that asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import sharedllm
from sharedllm.errors import UsageError
from sharedllm.sources import MAX_CHARACTERS, document_of

REFUSED, TOO_LONG = 3, 4  # exit statuses: the sentence on stderr says why
PASSED = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")
"""Of the environment, what Python may need there; the rest, keys among it, stays out of reach of a file."""


class TooLong(UsageError):
    """A file holds more text than is read."""


def text_of(name: str, raw: bytes, seconds: float, memory: int, most: int = MAX_CHARACTERS) -> str:
    """The text of a file.

    Args:
        seconds: that it may take.
        memory: bytes that it may take, where the system can tell.
        most: characters that it may hold.
    Raises:
        UsageError: there is no text, it cannot be read, or not within this time and memory; `TooLong`: it holds more characters.
    """
    command = [sys.executable, "-P", "-m", __name__, name, str(int(seconds) + 1), str(memory), str(most)]
    environment = {kept: os.environ[kept] for kept in PASSED if kept in os.environ}
    here = str(Path(sharedllm.__file__).parents[1])  # the package that runs, which a working folder may have given
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), here])
    try:
        done = subprocess.run(command, input=raw, capture_output=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is not None and done.returncode == 0:
        return done.stdout.decode("utf-8")
    if done is not None and done.returncode in (REFUSED, TOO_LONG):
        sentence = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1]
        raise UsageError(sentence) if done.returncode == REFUSED else TooLong(sentence)
    said = "" if done is None else done.stderr.decode("utf-8", "replace").strip()
    if done is not None and done.returncode > 0 and "MemoryError" not in said:
        raise UsageError(f"'{name}' cannot be read: {(said.splitlines() or ['no reason was given'])[-1][:200]}")
    raise UsageError(f"'{name}' takes more than {seconds:g} s or {memory / 2**30:g} GB to be read; split it, or save it as plain text.")  # fmt: skip


def _limit(seconds: int, memory: int) -> None:
    with suppress(ImportError, ValueError, OSError):  # a system without limits, or with lower ones
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _main(name: str, seconds: str, memory: str, most: str) -> int:
    raw = sys.stdin.buffer.read()
    _limit(int(seconds), int(memory))
    try:
        text = document_of(name, raw).text
    except UsageError as error:
        print(error, file=sys.stderr)
        return REFUSED
    if len(text) > int(most):
        print(
            f"'{name}' holds {len(text):,} characters, and {int(most):,} of a file are read; split it.", file=sys.stderr
        )
        return TOO_LONG
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
