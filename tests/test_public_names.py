"""What others build on: the public names and their parameters, as tests/public_names.txt has them.

A change here is a change for users: say it in CHANGELOG.md, then run `python -m tests.test_public_names`.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import sharedllm

PINNED = Path(__file__).with_name("public_names.txt")
EXTRA = ("session.Session", "prompts.Answer")  # documented in docs/reference.md, named by their module


def signature(value: object) -> str:
    """Parameters with their defaults and no types, such as `(self, question, max_new_tokens=128)`."""
    found = inspect.signature(value)  # type: ignore[arg-type]
    plain = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=plain, return_annotation=found.empty))


def members(name: str, value: type) -> list[str]:
    """A class and its own public members, a line each."""
    lines = [f"{name}{'' if issubclass(value, Exception) else signature(value)}"]
    for member, raw in vars(value).items():
        if member.startswith("_") or member in getattr(value, "__dataclass_fields__", ()):
            continue
        call = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        lines.append(f"{name}.{member}{signature(call) if callable(call) else ''}")
    return [lines[0], *sorted(lines[1:])]


def public() -> str:
    from importlib import import_module

    lines = []
    for name in sorted(sharedllm.__all__):
        value = getattr(sharedllm, name)
        lines += (
            members(name, value) if isinstance(value, type) else [name + (signature(value) if callable(value) else "")]
        )
    for path in EXTRA:
        module, name = path.split(".")
        lines += members(path, getattr(import_module(f"sharedllm.{module}"), name))
    return "\n".join(lines) + "\n"


def test_public_names_and_parameters_are_those_promised():
    assert public() == PINNED.read_text(encoding="utf-8"), __doc__


def test_the_reference_documents_every_public_name():
    reference = (Path(__file__).parent.parent / "docs/reference.md").read_text(encoding="utf-8")
    for name in set(sharedllm.__all__) - {"__version__"}:
        module = getattr(sharedllm, name).__module__
        assert f"::: {module}.{name}" in reference or f"::: {module}\n" in reference, name


def test_every_public_name_says_what_it_is():
    for value in (getattr(sharedllm, name) for name in set(sharedllm.__all__) - {"__version__"}):
        assert value.__doc__, value
        for name, raw in vars(value).items() if isinstance(value, type) else ():
            if not name.startswith("_") and isinstance(
                getattr(raw, "fget", getattr(raw, "__func__", raw)), FunctionType
            ):
                assert raw.__doc__, f"{value.__name__}.{name}"


def test_help_waits_for_nothing_heavy():
    program = (
        "import sys, sharedllm.cli\n"
        "try: sharedllm.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib', 'fastapi'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage:" in ran.stdout and ran.stdout.endswith("[]\n"), ran.stdout[-200:] + ran.stderr


def test_the_version_is_said():
    from importlib.metadata import version

    ran = subprocess.run([sys.executable, "-c", "from sharedllm.cli import main; main(['--version'])"], capture_output=True, text=True, check=True)  # fmt: skip
    assert ran.stdout == f"sharedllm {sharedllm.__version__}\n" and sharedllm.__version__ == version("sharedllm")


if __name__ == "__main__":
    PINNED.write_text(public(), encoding="utf-8")
