"""How many steps a second the pages take in headless Chromium.

    python benchmarks/pages.py               # the bundled 🦎 on 72², and nine of it to breed
    python benchmarks/pages.py old.html      # beside a player saved by another version, in turns

The player is timed by its own step, once the body is grown. Breeding is timed as it runs by
itself, with the whole CPU and with a quarter of it, as a phone has.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from nca_helpers import pretrained, save_breed, save_player

STEPS = """(() => {
    const start = performance.now();
    player.step(100);
    return 1e5 / (performance.now() - start);
})()"""


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    nca = pretrained("🦎", "regenerating")
    players = [save_player(folder / "now.html", nca), *map(Path, sys.argv[1:])]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        pages = {}
        for path in players:
            pages[path.name] = chromium.new_page()
            pages[path.name].goto(path.resolve().as_uri())
            pages[path.name].evaluate("player.pause(); player.step(200)")
        rates = {name: [] for name in pages}
        for _ in range(5):
            for name, page in pages.items():
                rates[name].append(page.evaluate(STEPS))
        for name, measured in rates.items():
            print(f"{name}: {statistics.median(measured):.0f} steps a second (median of 5)")
            pages[name].close()

        phone = chromium.new_page(viewport={"width": 390, "height": 664})
        phone.goto(save_breed(folder / "breed.html", nca).as_uri())
        session = phone.context.new_cdp_session(phone)
        for slower in (1, 4):
            session.send("Emulation.setCPUThrottlingRate", {"rate": slower})
            measured = []
            for _ in range(6):
                phone.wait_for_timeout(1000)
                measured.append(phone.evaluate("breed.stats().rate"))
            print(
                f"breed, CPU at 1/{slower}: {statistics.median(measured):.1f} steps a second of all"
            )
        chromium.close()


if __name__ == "__main__":
    main()
