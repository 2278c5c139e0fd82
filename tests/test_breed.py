"""Breeding by hand in a real browser: heredity, undo, and what is saved against the package."""

import base64
import contextlib
import json

import numpy as np
import pytest
from flax import nnx
from reference import Weights, set_weights, step, wait_until

from nca_helpers.checkpoint import load_meta, load_nca, save_nca
from nca_helpers.model import NCA, weights_of
from nca_helpers.player import breed_html, save_breed, show_breed

NAMES = "hidden/kernel", "hidden/bias", "update/kernel", "update/bias"


def make_nca(seed=0, channels=5, hidden=9, **options) -> NCA:
    """Random weights, each layer of another size."""
    random = np.random.default_rng(seed)
    shapes = (3 * channels, hidden), (hidden,), (hidden, channels), (channels,)
    scales = 0.2, 0.5, 0.1, 0.05
    weights = Weights(
        *(s * random.normal(size=shape) for s, shape in zip(scales, shapes, strict=True))
    )
    return set_weights(NCA(channels=channels, hidden=hidden, rngs=nnx.Rngs(0), **options), weights)


@pytest.fixture
def open_breed(browser, tmp_path):
    """Opens saved pages; afterwards, none may have complained or asked for anything."""
    complaints, requests, addresses = [], [], []
    contexts = contextlib.ExitStack()

    def open_breed(nca, *, size=16, **options):
        context = contexts.enter_context(contextlib.closing(browser.new_context(**options)))
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        path = save_breed(tmp_path / f"{len(addresses)}.html", nca, size=size)
        addresses.append(path.as_uri())
        page.goto(addresses[-1])
        return page

    with contexts:
        yield open_breed
        assert complaints == []
        assert requests == addresses


def stats(page):
    return page.evaluate("breed.stats()")


def weights(page, place) -> dict[str, np.ndarray]:
    """A body's weights, as `weights_of` returns an automaton's."""
    script = "place => btoa(String.fromCharCode(...new Uint8Array(breed.weights(place).buffer)))"
    values = np.frombuffer(base64.b64decode(page.evaluate(script, place)), np.float32)
    shapes = (9, 15), (9,), (5, 9), (5,)  # The page's kernels are transposed.
    parts = np.split(values, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    arrays = [part.reshape(shape).T for part, shape in zip(parts, shapes, strict=True)]
    return dict(zip(NAMES, arrays, strict=True))


def assert_same(one, other):
    for name in NAMES:
        np.testing.assert_array_equal(one[name], other[name])


def save(page, button):
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value


def test_nine_bodies_grow_by_themselves_the_parent_in_the_middle(open_breed):
    nca = make_nca()
    page = open_breed(nca)
    wait_until(page, "Math.min(...breed.stats().steps) > 3")
    assert_same(weights(page, 4), weights_of(nca))
    assert page.locator("#stage button").count() == 9
    assert page.get_by_label("Body 5 of 9, the parent").is_visible()


def test_children_are_the_parent_with_noise_of_each_layers_size(open_breed):
    nca = make_nca()
    page = open_breed(nca)
    page.get_by_label("Strength of mutation").fill("6")  # 0.01 times √2 to the 6th: 8 %
    page.get_by_label("Body 5").click()
    parent = weights_of(nca)
    children = [weights(page, place) for place in range(9) if place != 4]
    for name in NAMES:
        noise = np.stack([child[name] - parent[name] for child in children])
        expected = 0.08 * np.sqrt(np.mean(np.square(parent[name])))
        assert noise.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * noise.size))
        assert abs(noise.mean()) < 5 * expected / np.sqrt(noise.size)
        assert len(np.unique(noise)) > 0.9 * noise.size  # Every child and weight has its own.


def test_the_chosen_is_the_next_parent_and_undo_brings_all_nine_back(open_breed):
    page = open_breed(make_nca())
    assert page.get_by_role("button", name="Undo").is_disabled()
    first = [weights(page, place) for place in range(9)]
    page.get_by_label("Body 3 of 9").click()
    assert_same(weights(page, 4), first[2])
    second = [weights(page, place) for place in range(9)]
    assert (second[0]["hidden/kernel"] != first[0]["hidden/kernel"]).any()
    page.keyboard.press("8")
    assert_same(weights(page, 4), second[7])
    assert stats(page)["generation"] == 2
    page.get_by_role("button", name="Undo").click()
    for place in range(9):
        assert_same(weights(page, place), second[place])
    page.keyboard.press("u")
    for place in range(9):
        assert_same(weights(page, place), first[place])
    assert stats(page)["generation"] == 0
    assert page.get_by_role("button", name="Undo").is_disabled()


def test_the_checkpoint_that_the_page_saves_is_read_by_load_nca(open_breed, tmp_path):
    page = open_breed(make_nca(fire_rate=0.3, alive_threshold=0.2))
    page.get_by_label("Body 1 of 9").click()
    download = save(page, "Save .npz")
    assert download.suggested_filename == "bred-1.npz"
    bred, meta = load_nca(download.path()), load_meta(download.path())
    assert_same(weights_of(bred), weights(page, 4))
    assert (bred.fire_rate, bred.alive_threshold) == (0.3, 0.2)
    assert meta == {
        "format": 1, "channels": 5, "hidden": 9, "fire_rate": 0.3, "alive_threshold": 0.2,
        "regime": "bred", "generations": 1,
    }  # fmt: skip
    again = load_nca(save_nca(tmp_path / "again.npz", bred))
    assert_same(weights_of(again), weights_of(bred))


def test_the_page_that_it_saves_plays_the_chosen_one(open_breed, browser, tmp_path):
    page = open_breed(make_nca())
    page.get_by_label("Body 9 of 9").click()
    path = tmp_path / "bred.html"
    save(page, "Save page").save_as(path)
    expected = weights(page, 4)
    data = path.read_text().partition('id="data" type="application/json">')[2]
    (model,) = json.loads(data.partition("</script>")[0])["models"]
    values = np.frombuffer(base64.b64decode(model["weights"]), np.float32)
    np.testing.assert_array_equal(values, np.concatenate([expected[n].T.ravel() for n in NAMES]))
    with contextlib.closing(browser.new_page()) as player:
        player.goto(path.as_uri())
        wait_until(player, "player.stats().steps > 3")


def test_a_body_grows_as_its_weights_say(open_breed):
    nca = make_nca(seed=10, fire_rate=1.0)
    page = open_breed(nca, size=9)
    page.evaluate("breed.pause()")
    page.get_by_role("button", name="Grow again").click()
    state = np.zeros((9, 9, 5))
    state[4, 4, 3:] = 1.0
    rule = Weights(*(np.asarray(weight, float) for weight in weights_of(nca).values()))
    for _ in range(6):
        page.evaluate("breed.step()")
        state = step(rule, state, np.ones((9, 9), bool))
        assert stats(page)["living"][4] == (state[..., 3] > 0.1).sum()
    assert stats(page)["living"][4] == 46


def test_death_and_overflow_are_told(open_breed):
    nca = make_nca()
    zeros = [np.zeros(shape) for shape in ((15, 9), (9,), (9, 5))]
    for bias, fate in (((0, 0, 0, -2, 0), "died"), ((3e38,) * 5, "burst")):
        page = open_breed(set_weights(nca, Weights(*zeros, bias)))
        page.evaluate("breed.step(30)")
        wait_until(
            page, f"document.querySelector('#stage button:nth-child(5)').innerText === '{fate}'"
        )


@pytest.mark.parametrize("width, height", [(390, 664), (360, 640), (1200, 700)])
def test_all_nine_and_undo_fit_a_screen(open_breed, width, height):
    page = open_breed(make_nca(), viewport={"width": width, "height": height})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    undo = page.get_by_role("button", name="Undo").bounding_box()
    last = page.get_by_label("Body 9").bounding_box()
    assert max(undo["y"] + undo["height"], last["y"] + last["height"]) <= height
    assert last["width"] > 100


def test_everything_can_be_reached_by_tab_and_shows_its_focus(open_breed):
    page = open_breed(make_nca())
    page.get_by_label("Body 2 of 9").click()
    names = []
    for _ in range(15):
        page.keyboard.press("Tab")
        focus = page.evaluate("""() => {
            const element = document.activeElement;
            const { outlineStyle, outlineWidth } = getComputedStyle(element);
            return [element.ariaLabel || element.innerText, outlineStyle, outlineWidth];
        }""")
        if focus[0] and page.evaluate("document.activeElement !== document.body"):
            assert focus[1:] == ["solid", "3px"], focus
            names.append(focus[0].strip())
    bodies = [f"Body {place} of 9" for place in (3, 4)] + ["Body 5 of 9, the parent"]
    expected = ["Undo", "Grow again", "Strength of mutation", "Save .npz", "Save page", "Help"]
    assert set(names) >= {*bodies, *expected}


def test_a_notebook_gets_a_frame_that_may_save(monkeypatch):
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython.display, "display", outputs.append)
    show_breed(make_nca(), size=20)
    (output,) = outputs
    assert 'sandbox="allow-scripts allow-downloads" title="Breed by hand"' in output.data


def test_the_page_is_small():
    assert len(breed_html(NCA(rngs=nnx.Rngs(0))).encode()) < 160_000


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda: {"a": make_nca()}, {}, "nca must be an NCA, got"),
        (lambda: None, {}, "nca must be an NCA, got None"),
        (make_nca, {"size": 7}, "size must be an integer from 8 to 256, got 7"),
    ],
)
def test_bad_input_is_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        breed_html(make(), **options)
