"""Writes a site that can be published as it is: players, breeding, and the notebooks as pages.

    make site        into out/site

Every page is complete without the network; without JavaScript all but the players works.
Formulas are MathML. A notebook's page shows its committed outputs.
"""

import base64
import html
import io
import re
import shutil
import sys
import tomllib
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import jax
import mediapy
import nbformat
import numpy as np
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from make_gallery import models
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

import nca_helpers
from nca_helpers.files import replace_file

ROOT = Path(__file__).resolve().parent.parent
PARTS = Path(__file__).parent / "site"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
MARK = ".nojekyll"  # GitHub Pages publishes the files as they are. It also tells a site of ours.
WIDGET = "application/vnd.jupyter.widget-view+json"


class Renderer(IPythonRenderer):
    """Markdown as a page needs it that loads nothing: formulas as MathML, badges as words."""

    def block_math(self, body: str) -> str:
        return convert(body, display="block")

    def inline_math(self, body: str) -> str:
        return convert(body)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text if url.startswith("https://") else super().image(text, url, title)


def main() -> None:
    site = Path(sys.argv[1])
    if site.exists() and not (site / MARK).exists():
        sys.exit(f"{site} is there and is no site: name a folder that may be replaced")
    shutil.rmtree(site, ignore_errors=True)
    replace_file(site / MARK, b"")
    for file in (ROOT / "notebooks").glob("images/*"):
        replace_file(site / "images" / file.name, file.read_bytes())
    replace_file(site / "style.css", (PARTS / "style.css").read_bytes())
    automata = models()
    nca_helpers.save_player(site / "play.html", automata)
    nca_helpers.save_breed(site / "breed.html", next(iter(automata.values())))
    cards = [model_card(site, name, nca) for name, nca in automata.items()]
    notebooks = [write_notebook(site, path) for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    lead = from_readme(r"\n\n(One cell, and a rule.*?)\n\n")
    width, height = Image.open(site / "images" / "lizard.gif").size
    content = fill(
        "index.html",
        lead=lead,
        width=width,
        height=height,
        models="\n".join(cards),
        notebooks="\n".join(notebooks),
        folder=REPOSITORY.rpartition("/")[2],
    )
    title = "Growing neural cellular automata: play, breed, learn"
    write_page(site / "index.html", title, lead, content, kind="front")
    print(site / "index.html")


def model_card(site: Path, name: str, nca: nca_helpers.NCA) -> str:
    """Grows a still of a model into the site; returns the model's entry in the gallery."""
    emoji, regime = name.split()
    state = nca_helpers.seed_state(48, 48, nca.channels)
    num_steps = nca_helpers.pretrained_meta(emoji, regime)["num_steps"]
    grown = nca_helpers.rollout(nca, state, jax.random.key(0), num_steps)
    picture = mediapy.compress_image(mediapy.to_uint8(np.asarray(nca_helpers.to_rgb(grown))))
    file = f"{'-'.join(f'{ord(character):x}' for character in emoji)}_{regime}.png"
    replace_file(site / file, picture)
    return fill("model.html", name=name, file=file, link=f"play.html#model={quote(name)}")


def write_notebook(site: Path, path: Path) -> str:
    """Writes a notebook's page; returns its entry on the front page."""
    soup = notebook_soup(path)
    title = soup.h1.get_text().removesuffix("#")
    # The first paragraph that is more than badges.
    lead = next(p for p in map(Tag.get_text, soup.h1.find_next_siblings("p")) if len(p) > 80)
    badges = [str(link) for link in soup.select("a") if link.get_text().startswith("Open in ")]
    write_page(site / f"{path.stem}.html", title, lead, str(soup), kind="notebook")
    result = from_readme(rf"\({path.parent.name}/{path.name}\) \| (.*?) \|")
    return fill(
        "notebook.html", name=path.stem, title=title, result=result, badges=" ".join(badges)
    )


def notebook_soup(path: Path) -> BeautifulSoup:
    """Returns a committed notebook as HTML that loads nothing and does not jump."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # A widget lives in a kernel, and there is none behind a page.
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    exporter = HTMLExporter(template_name="notebook_page", extra_template_basedirs=[str(PARTS)])
    exporter.register_filter("markdown2html", as_html)
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    for link in soup.select("a[href]"):
        link["href"] = address(link["href"])
    for picture in soup.select("img[src^='data:image/png']:not([width])"):
        data = base64.b64decode(picture["src"].partition(",")[2])
        picture["width"], picture["height"] = Image.open(io.BytesIO(data)).size
    for scrollable in soup.select(
        "pre, .output_area, math[display=block], .text_cell_render table"
    ):
        scrollable["tabindex"] = "0"  # So that the arrow keys reach it.
    for frame in soup.select("iframe"):
        frame["loading"] = "lazy"
    sections = "".join(
        f'<li><a href="#{heading["id"]}">{html.escape(heading.get_text().rstrip("#"))}</a></li>'
        for heading in soup.select("h2[id]")
    )
    contents = f"<details><summary>Contents</summary><ul>{sections}</ul></details>"
    soup.select_one(".cell").insert_after(BeautifulSoup(contents, "html.parser"))
    return soup


def as_html(source: str) -> str:
    """Returns a cell's markdown as HTML."""
    return MarkdownWithMath(renderer=Renderer(escape=False, anchor_link_text="#")).render(source)


def address(link: str) -> str:
    """Returns where a notebook's link leads from its page: another page, or the repository."""
    if re.match(r"https?:|#|mailto:", link):
        return link
    path, _, anchor = link.partition("#")
    target = (ROOT / "notebooks" / path).resolve().relative_to(ROOT)
    if target.suffix == ".ipynb":
        return f"{target.stem}.html" + (f"#{anchor}" if anchor else "")
    return f"{REPOSITORY}/blob/main/{target.as_posix()}"


def from_readme(pattern: str) -> str:
    """Returns the one group that a pattern finds in the README, as HTML that begins a sentence."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = " ".join(re.search(pattern, text, re.DOTALL)[1].split())
    return as_html(found[0].upper() + found[1:]).strip().removeprefix("<p>").removesuffix("</p>")


def fill(part: str, **values: Any) -> str:
    """Returns one of the site's parts with its values put in."""
    text = (PARTS / part).read_text(encoding="utf-8")
    return Template(text).substitute(values, repository=REPOSITORY)


def write_page(path: Path, title: str, lead: str, content: str, *, kind: str) -> None:
    """Writes a whole page."""
    lead = html.escape(BeautifulSoup(lead, "html.parser").get_text())
    page = fill("page.html", title=html.escape(title), lead=lead, content=content, kind=kind)
    replace_file(path, page.encode())


if __name__ == "__main__":
    main()
