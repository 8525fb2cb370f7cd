"""What goes wrong, in two kinds: a wrong use (exit code 2) and work that failed (exit code 1).

Every message is one sentence or two: what was wrong, what was expected, what to do.
"""

import errno
import sys

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says, on a GPU and on a CPU."""


class SharedLLMError(Exception):
    """Base of the errors this library raises on purpose."""

    exit_code = 1


class UsageError(SharedLLMError, ValueError):
    """The caller asked for something that cannot be: a missing file, a negative length, a foreign adapter."""

    exit_code = 2


class WorkError(SharedLLMError, RuntimeError):
    """The request was fine and the work failed: a full disk, a file cut short, too little memory."""

    exit_code = 1


def to_install(extra: str) -> str:
    """How a user gets an extra of this package, for the end of a sentence: of a release, and of a checkout of the source."""
    return f"run pip install 'sharedllm[{extra}]' (in a checkout: pip install -e '.[{extra}]')"


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: Python's own, the system's, or one of torch's, which is not loaded for this."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and (
        isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)
    )
