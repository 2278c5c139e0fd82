"""A real browser, for the tests of what a reader sees in one."""

import shutil

import pytest

BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as playwright:
        found = [path for path in map(shutil.which, BROWSERS) if path]
        if not found:
            pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
        browser = playwright.chromium.launch(executable_path=found[0], args=ARGUMENTS)
        yield browser
        browser.close()
