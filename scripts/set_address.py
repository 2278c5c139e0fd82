"""Writes the public address of pyproject.toml into notebooks, README and CITATION.cff.

python scripts/set_address.py           writes
python scripts/set_address.py --check   writes nothing, fails if something is to be written
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("notebooks/*.ipynb")), ROOT / "README.md", ROOT / "CITATION.cff"]


def address() -> str:
    """Returns owner/name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def with_address(text: str, address: str) -> str:
    """Returns the text with every mention of this repository at the given address.

    This repository is told from others by what its address stands in: a badge's path to a
    notebook, an installation, where to report, or the `repository-code` of a citation.
    """
    for before, after in [
        (r"github\.com/|github/", r"/blob/main/notebooks/"),
        (r"git\+https://github\.com/", r"(?![\w./-])"),
        (r"\[open an issue\]\(https://github\.com/", r"/issues\)"),
        (r"repository-code: \"?https://github\.com/", r"\"?$"),
    ]:
        text = re.sub(rf"(?m)((?:{before}))[\w.-]+/[\w.-]+({after})", rf"\g<1>{address}\g<2>", text)
    return text


def main() -> None:
    changed = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = with_address(text, address())
        if new != text:
            changed.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    print("to write:" if "--check" in sys.argv else "written:", ", ".join(changed) or "nothing")
    sys.exit(bool(changed) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
