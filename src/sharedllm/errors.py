"""What goes wrong, in two kinds: a wrong use (exit code 2) and work that failed (exit code 1).

Every message is one sentence or two: what was wrong, what was expected, what to do.
"""


class SharedLLMError(Exception):
    """Base of the errors this library raises on purpose."""

    exit_code = 1


class UsageError(SharedLLMError, ValueError):
    """The caller asked for something that cannot be: a missing file, a negative length, a foreign adapter."""

    exit_code = 2


class WorkError(SharedLLMError, RuntimeError):
    """The request was fine and the work failed: a full disk, a file cut short, too little memory."""

    exit_code = 1
