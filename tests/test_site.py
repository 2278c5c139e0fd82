"""The site: links that lead somewhere, pages that anybody can read, nothing loaded."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_site.py", str(folder)])
        patch.syspath_prepend(ROOT / "scripts")
        runpy.run_path(str(ROOT / "scripts" / "make_site.py"), run_name="__main__")
    return folder


def pages(site):
    return {
        path.name: BeautifulSoup(path.read_text("utf-8"), "html.parser")
        for path in sorted(site.glob("*.html"))
    }


def test_every_notebook_has_a_page_with_its_badges_and_the_site_is_small(site):
    names = {path.name for path in site.iterdir()}
    assert {"index.html", "play.html", "breed.html", "images"} < names
    front = (site / "index.html").read_text("utf-8")
    for notebook in NOTEBOOKS:
        page = (site / f"{notebook.stem}.html").read_text("utf-8")
        for text in front, page:
            assert re.search(rf'href="https://colab[^"]*/{notebook.name}"', text)
            assert re.search(rf'href="https://kaggle[^"]*/{notebook.name}"', text)
    assert sum(path.stat().st_size for path in site.rglob("*")) < 15e6


def test_every_link_leads_somewhere(site):
    found = pages(site)
    for name, page in found.items():
        links = [tag[key] for key in ("href", "src") for tag in page.select(f"[{key}]")]
        for link in links:
            parts = urlsplit(link)
            if parts.scheme == "data" or link.startswith("https://"):
                ours = re.fullmatch(rf"{re.escape(REPOSITORY)}/blob/main/([^#]+).*", link)
                assert not ours or (ROOT / unquote(ours[1])).exists(), (name, link)
                continue
            assert not parts.scheme, (name, link)
            target = parts.path or name
            assert (site / target).is_file(), (name, link)
            if parts.fragment and target in found and target not in ("play.html", "breed.html"):
                # As a browser looks for it: as it stands, then decoded.
                ids = [parts.fragment, unquote(parts.fragment)]
                assert found[target].find(id=ids), (name, link)


def test_every_page_says_what_it_is(site):
    for name, page in pages(site).items():
        assert page.html["lang"] == "en", name
        assert page.title.get_text(strip=True), name
        assert page.find("meta", attrs={"name": "viewport"}), name
        if name in ("play.html", "breed.html"):
            continue  # tests/test_player.py looks at them.
        assert 20 < len(page.find("meta", attrs={"name": "description"})["content"]) < 800, name
        assert len(page.select("h1")) == 1, name
        assert not page.select("img:not([alt])"), name
        assert not page.select("img:not([width])"), name


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_pages_can_be_read_by_everybody_and_load_nothing(site, browser, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    page, complaints, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.add_init_script("""
        window.jumped = 0;
        new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) window.jumped += entry.value;
        }).observe({type: "layout-shift", buffered: true});
    """)
    for path in [site / "index.html", *(site / f"{path.stem}.html" for path in NOTEBOOKS)]:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        found = Axe().run(page, options={"resultTypes": ["violations"], "iframes": False})
        assert not found.response["violations"], found.generate_report()
        assert page.evaluate("window.jumped") < 0.02, path.name
    context.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:", "about:")) for url in requests)


def test_pages_are_complete_without_javascript(site, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    assert page.get_by_role("link", name="Play with one").is_visible()
    for notebook in NOTEBOOKS:
        page.goto((site / f"{notebook.stem}.html").as_uri())
        assert page.locator("h1").is_visible()
        assert page.locator("pre").count() > 10
        assert page.locator("img").count()
    # Formulas are drawn by the browser itself.
    page.goto((site / "02_growing_with_pgpe.html").as_uri())
    assert page.locator("math").first.bounding_box()["height"] > 5
    context.close()


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("four years")
    command = [sys.executable, ROOT / "scripts" / "make_site.py", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "is no site" in ran.stderr
    assert (tmp_path / "thesis.tex").exists()
