"""Draws the bundled emoji anew with the installed font Noto Color Emoji.

Run `python scripts/render_emoji.py` from the repository; equal fonts give equal files.
"""

import io
from pathlib import Path

from nca_helpers.emoji import BUNDLED, emoji_name, render_emoji, replace_file

FOLDER = Path(__file__).resolve().parent.parent / "nca_helpers" / "data" / "emoji"


def main() -> None:
    for emoji in BUNDLED:
        path, picture = FOLDER / emoji_name(emoji), io.BytesIO()
        render_emoji(emoji).save(picture, "PNG", optimize=True)
        replace_file(path, picture.getvalue())
        print(f"{emoji}  {path.name}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
