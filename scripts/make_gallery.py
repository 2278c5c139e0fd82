"""Writes one page with a player for all models that come with the package.

    python scripts/make_gallery.py out/gallery.html

The page needs nothing else and can be published as it is.
"""

import sys

from nca_helpers import bundled, pretrained, save_player

FIRST = "🦎", "regenerating"  # What the page starts with should bear being drawn on.


def main() -> None:
    ordered = sorted(bundled(), key=lambda model: (model != FIRST, model[0] != FIRST[0]))
    models = {f"{emoji} {regime}": pretrained(emoji, regime) for emoji, regime in ordered}
    print(save_player(sys.argv[1], models))


if __name__ == "__main__":
    main()
