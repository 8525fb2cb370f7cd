"""A browser before a server with a tiny random model."""

from __future__ import annotations

import pytest

from tests.browser.chromium import Chromium, found
from tests.serve.conftest import started


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    running = started(tmp_path_factory.mktemp("store"), answer_tokens=16)
    yield running
    running.stop()


@pytest.fixture(scope="package")
def chromium(tmp_path_factory):
    pytest.importorskip("websockets", reason="websockets is not installed")
    if found() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(chromium, served):
    """The page, freshly opened in a browser that remembers nothing; it must not meet a problem."""
    chromium.screen(1200, 900)
    chromium.open(f"{served.url}/")
    chromium.js("localStorage.clear(), sessionStorage.clear()")
    chromium.open(f"{served.url}/?again")
    chromium.wait("document.getElementById('model').textContent.includes('window')")
    chromium.problems.clear()
    yield chromium
    assert not chromium.problems
