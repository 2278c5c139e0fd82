"""Draws the bundled emoji anew with the installed font Noto Color Emoji.

Run `python scripts/render_emoji.py` from the repository; equal fonts give equal files.
"""

import os
import tempfile
from pathlib import Path

from nca_helpers.emoji import BUNDLED, emoji_name, render_emoji

FOLDER = Path(__file__).resolve().parent.parent / "nca_helpers" / "data" / "emoji"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for emoji in BUNDLED:
        path = FOLDER / emoji_name(emoji)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            whole = Path(folder, path.name)
            render_emoji(emoji).save(whole, optimize=True)
            os.replace(whole, path)
        print(f"{emoji}  {path.name}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
