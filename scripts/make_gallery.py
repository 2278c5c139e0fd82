"""Writes one page with a player for all models that come with the package.

    python scripts/make_gallery.py out/gallery.html

The page needs nothing else and can be published as it is.
"""

import sys

from nca_helpers import NCA, bundled, pretrained, save_player

FIRST = "🦎", "regenerating"  # What the page starts with should bear being drawn on.


def models() -> dict[str, NCA]:
    """Returns the models that come with the package, by a name that a reader understands."""
    ordered = sorted(bundled(), key=lambda model: (model != FIRST, model[0] != FIRST[0]))
    return {f"{emoji} {regime}": pretrained(emoji, regime) for emoji, regime in ordered}


if __name__ == "__main__":
    print(save_player(sys.argv[1], models()))
