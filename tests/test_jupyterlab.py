"""The playground in JupyterLab, as a reader meets it: its server, a kernel, a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from reference import wait_until

ROOT = Path(__file__).parent.parent
PATIENCE = 120


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that has a copy of the playground."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "00_playground.ipynb", tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path), "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]
    server = subprocess.Popen(
        command,
        env=os.environ | own | {"PYTHONPATH": str(ROOT), "NCA_PRESET": "quick"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}"
    try:
        for _ in range(PATIENCE):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            except OSError:
                assert server.poll() is None, "the server has ended"
                time.sleep(0.5)
        else:
            pytest.fail("the server does not answer")
        yield address
    finally:
        server.terminate()
        server.wait()


def test_the_playground_plays(lab, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{lab}/lab/tree/notebooks/00_playground.ipynb")
    page.locator(".jp-Notebook").wait_for()
    page.get_by_text("| Idle").wait_for()

    page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    last = page.locator(".jp-CodeCell").last
    last.locator(".jp-OutputArea-output", has_text="quick").wait_for()
    assert page.locator("[data-mime-type*='jupyter.error']").count() == 0

    # The page under its cell lives: steps go by, and what is chosen there is what grows.
    # A browser lets a frame that is out of sight stand still.
    page.locator("iframe[title='Neural cellular automaton']").scroll_into_view_if_needed()
    (player,) = (frame for frame in page.frames if frame.evaluate("'player' in window"))
    before = player.evaluate("player.stats().steps")
    wait_until(player, f"player.stats().steps > {before}")

    # What the menu says is what the cells below it load.
    menu = page.locator(".widget-dropdown select").first
    menu.select_option(label="🐠 persistent")
    load = page.locator(".jp-CodeCell", has_text="regime = choice.value")
    load.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Shift+Enter")
    load.get_by_text("🐠 persistent: 8,336 parameters").wait_for()
