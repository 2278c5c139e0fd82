"""Writes one page with a player for all models that come with the package.

    python scripts/make_gallery.py out/gallery.html

The page needs nothing else and can be published as it is.
"""

import sys

from nca_helpers import bundled, pretrained, save_player


def main() -> None:
    lizards_first = sorted(bundled(), key=lambda model: model[0] != "🦎")
    models = {f"{emoji} {regime}": pretrained(emoji, regime) for emoji, regime in lizards_first}
    print(save_player(sys.argv[1], models))


if __name__ == "__main__":
    main()
