"""A real Ray cluster of two processors in this process, for the tests of a module; they are skipped without Ray."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sharedllm[ray]'")
    for attempts_left in (1, 0):
        try:
            ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
            break
        except Exception:  # on a busy machine it may not be up within the half minute that Ray waits
            ray.shutdown()
            if not attempts_left:
                raise
    yield ray
    ray.shutdown()
