"""`make test-extras` fails where a package is missing, instead of passing over what needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs_examples import ROOT

SKIPPED = {
    "a test": "def test_it():\n    pytest.importorskip('no_such_package')\n",
    "a mark": "@pytest.mark.skipif(True, reason='no_such_package')\ndef test_it(): pass\n",
    "a fixture": "@pytest.fixture\ndef bucket(): pytest.importorskip('no_such_package')\ndef test_it(bucket): pass\n",
    "a file": "pytest.importorskip('no_such_package')\ndef test_it(): pass\n",
}


@pytest.mark.parametrize("what", SKIPPED)
def test_what_would_be_skipped_fails(what, tmp_path):
    (tmp_path / "test_skipped.py").write_text(f"import pytest\n{SKIPPED[what]}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    plain, strict = (subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True) for more in ([], ["-p", "tests.no_skips"]))  # fmt: skip
    assert plain.returncode in (0, 5) and "1 skipped" in plain.stdout
    assert strict.returncode not in (0, 5) and "no_such_package" in strict.stdout
    assert "nothing may be skipped here" in strict.stdout


def test_what_passes_and_what_is_expected_to_fail_is_left_alone(tmp_path):
    (tmp_path / "test_fine.py").write_text("import pytest\ndef test_it(): pass\n@pytest.mark.xfail\ndef test_other(): assert False\n")  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-p", "tests.no_skips", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed, 1 xfailed" in done.stdout
