"""The player in a real browser: its step against JAX's, every control, and what it is safe from."""

import base64
import contextlib
import http.server
import os
import re
import threading
import warnings

import IPython.display
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from reference import Weights, living_mask, perceive, refuses, set_weights, wait_until

from nca_helpers.checkpoint import pretrained, pretrained_meta
from nca_helpers.emoji import load_emoji
from nca_helpers.model import NCA, seed_state
from nca_helpers.player import player_html, save_player, show_player

# Time stands still until the test turns a frame, so that frames can be counted.
MANUAL_FRAMES = """
    let next = null;
    window.requestAnimationFrame = (callback) => { next = callback; };
    // Within a frame time stands still: a busy machine would run out of the frame's budget.
    const now = performance.now.bind(performance);
    window.turnFrames = (count) => {
        for (; count > 0; count--) {
            const start = now();
            performance.now = () => start;
            next();
            performance.now = now;
        }
    };
"""


PHONE = {"width": 360, "height": 640}


# Automata whose behaviour is known


def steady_nca(channels=16, hidden=128, seed=2, alpha_bias=0.02, **options) -> NCA:
    """Random weights, and a pull towards zero that keeps the states bounded for ever."""
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(3 * channels, hidden)) / np.sqrt(3 * channels)
    bias = 0.3 * random.normal(size=hidden)
    update = 0.45 * random.normal(size=(hidden, channels)) / np.sqrt(hidden)
    update_bias = 0.05 * random.normal(size=channels)
    update_bias[3] = alpha_bias
    for channel, (positive, negative) in enumerate(np.arange(2 * channels).reshape(-1, 2)):
        for unit, sign in ((positive, 1.0), (negative, -1.0)):
            kernel[:, unit], bias[unit], update[unit] = 0.0, 0.0, 0.0
            kernel[channel, unit], update[unit, channel] = sign, -0.15 * sign
    nca = NCA(channels=channels, hidden=hidden, rngs=nnx.Rngs(0), **options)
    return set_weights(nca, Weights(kernel, bias, update, update_bias))


def adding_nca(bias=(0.1, 0.0, 0.0, 0.2, -0.1), fire_rate=1.0, **options) -> NCA:
    """Every cell that fires gains `bias`, whatever it sees: life spreads by a cell a step."""
    channels, hidden = len(bias), 4
    nca = NCA(channels=channels, hidden=hidden, fire_rate=fire_rate, rngs=nnx.Rngs(0), **options)
    zeros = np.zeros((3 * channels, hidden)), np.zeros(hidden), np.zeros((hidden, channels))
    return set_weights(nca, Weights(*zeros, bias))


def random_state(size, channels, seed=0) -> np.ndarray:
    """A state up to the edges, most of it dead cells that are not empty."""
    random = np.random.default_rng(seed)
    state = random.uniform(-0.5, 0.5, (size, size, channels))
    alive = random.uniform(size=(size, size)) < np.linspace(-0.8, 0.5, size)
    state[..., 3] = np.where(alive, 0.7, 0.05)
    return state.astype(np.float32)


def jax_step(nca, size, **options):
    """One step of the model itself, with every cell firing."""
    return jax.jit(lambda state: nca.step(state, jnp.ones((size, size), bool), **options))


# The browser


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens saved players; afterwards, none may have complained or asked for anything."""
    complaints, requests, addresses = [], [], []
    contexts = contextlib.ExitStack()

    def open_page(nca, *, size=16, manual=True, link="", script="", decoder=None, **options):
        context = contexts.enter_context(
            contextlib.closing(browser.new_context(**{"color_scheme": "light"} | options))
        )
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url.partition("#")[0]))
        page.add_init_script((MANUAL_FRAMES if manual else "") + script)
        path = save_player(tmp_path / f"{len(addresses)}.html", nca, size=size, decoder=decoder)
        addresses.append(path.as_uri())
        page.goto(addresses[-1] + link)
        return page

    with contexts:
        yield open_page
        assert complaints == []
        assert requests == addresses


def turn(page, frames=1):
    page.evaluate("turnFrames", frames)


def stats(page):
    return page.evaluate("player.stats()")


def get_state(page) -> np.ndarray:
    """As bytes: playwright takes a second for 80,000 numbers, and knows no NaN."""
    now, values = page.evaluate("""() => {
        const bytes = Array.from(new Uint8Array(player.state().buffer));
        return [player.stats(), btoa(bytes.map((byte) => String.fromCharCode(byte)).join(""))];
    }""")
    values = np.frombuffer(base64.b64decode(values), np.float32)
    return values.reshape(now["size"], now["size"], now["channels"])


def set_state(page, state):
    script = """values => player.setState(new Float32Array(
        Uint8Array.from(atob(values), (character) => character.charCodeAt(0)).buffer))"""
    page.evaluate(script, base64.b64encode(np.asarray(state, np.float32).tobytes()).decode())


def pixels(page) -> np.ndarray:
    script = """Array.from(document.querySelector("canvas").getContext("2d")
        .getImageData(0, 0, player.stats().size, player.stats().size).data)"""
    size = stats(page)["size"]
    return np.asarray(page.evaluate(script)).reshape(size, size, 4)[..., :3]


def point(page, row, column):
    """The middle of a cell, in the page's own coordinates."""
    box = page.locator("canvas").bounding_box()
    size = stats(page)["size"]
    x, y = (column + 0.5) / size * box["width"], (row + 0.5) / size * box["height"]
    return box["x"] + x, box["y"] + y


def slide(page, name, value):
    page.get_by_label(name).fill(str(value))


def distances(size, start, end) -> np.ndarray:
    """(size, size): how far each cell's centre is from the segment between two cells."""
    cells = np.stack(np.mgrid[:size, :size], axis=-1).astype(float)
    start, along = np.asarray(start, float), np.subtract(end, start).astype(float)
    share = np.clip((cells - start) @ along / max(along @ along, 1e-9), 0, 1)
    return np.linalg.norm(cells - start - share[..., None] * along, axis=-1)


# One step


@pytest.mark.parametrize(
    "channels, hidden, size, angle, seed, script",
    [
        (16, 128, 40, 0, 10, ""),
        (16, 128, 16, 40, 11, ""),
        (4, 9, 9, -135, 16, ""),
        (7, 20, 12, 0, 10, ""),
        (7, 20, 12, 0, 10, "delete window.WebAssembly"),
    ],
)
def test_fifty_steps_equal_those_of_jax(open_page, channels, hidden, size, angle, seed, script):
    nca = steady_nca(channels, hidden, seed)
    state = random_state(size, channels)
    page = open_page(nca, size=size, script=script)
    assert stats(page)["compiled"] == (script == "")
    slide(page, "Angle", angle)
    set_state(page, state)
    page.get_by_role("button", name="Pause").click()
    step = jax_step(nca, size, angle=np.radians(angle))
    masks = []
    for count in range(1, 51):
        state = np.asarray(step(state))
        # Where alpha is above the threshold, or is next to such a cell.
        mature = np.pad(state[..., 3] > np.float32(0.1), 1)
        masks.append(np.lib.stride_tricks.sliding_window_view(mature, (3, 3)).any(axis=(2, 3)))
        if count % 10 == 0:
            page.evaluate("player.step(10, {fireAll: true})")
            np.testing.assert_allclose(get_state(page), state, rtol=0, atol=1e-4)
    assert stats(page)["steps"] == 50
    births, deaths = (np.diff(np.asarray(masks, int), axis=0) == sign for sign in (1, -1))
    assert births.any() and deaths.any()


def test_a_cell_outside_the_living_mask_can_keep_its_neighbour_alive(open_page):
    # The mask after the update sees alpha that dead cells have just gained.
    state = np.zeros((9, 9, 5), np.float32)
    state[4, 4] = 1.0
    alpha, x, y = 3, 5 + 3, 10 + 3
    kernel, update = np.zeros((15, 4)), np.zeros((4, 5))
    kernel[[alpha, y, x, x, y], [0, 0, 1, 2, 3]] = 1, -1, 1, -1, 1
    update[:, alpha] = -5.0  # all that feel life, in alpha or in a slope, lose their own
    weights = Weights(kernel, np.zeros(4), update, [0.1, 0.0, 0.0, 0.3, 0.0])
    nca = set_weights(adding_nca(), weights)
    page = open_page(nca, size=9)
    set_state(page, state)
    page.evaluate("player.step(1, {fireAll: true})")
    after = np.asarray(jax_step(nca, 9)(state))
    assert (after[..., 3] < 0).sum() == 8 and (after[4, 4] == 0).all()
    np.testing.assert_allclose(get_state(page), after, rtol=0, atol=1e-6)


def test_the_threshold_is_compared_in_float32(open_page):
    state = np.zeros((8, 8, 5), np.float32)
    state[4, 4, 3] = np.float32(0.1)  # which is more than 0.1 in float64, but not above itself
    page = open_page(adding_nca(), size=8)
    set_state(page, state)
    assert stats(page)["living"] == 0


@pytest.mark.parametrize("fire_rate, slider", [(0.3, None), (0.5, 0.8), (0.5, 0), (0.5, 1)])
def test_cells_fire_at_the_fire_rate(open_page, fire_rate, slider):
    page = open_page(adding_nca(fire_rate=fire_rate), size=64)
    if slider is not None:
        slide(page, "Fire rate", slider)
        fire_rate = slider
    set_state(page, np.ones((64, 64, 5)))
    page.evaluate("player.step()")
    changed = get_state(page)[..., [0, 3, 4]] != 1
    fired = changed.all(axis=-1)
    assert (fired == changed.any(axis=-1)).all()
    deviation = np.sqrt(fire_rate * (1 - fire_rate) / fired.size)
    assert abs(fired.mean() - fire_rate) <= 5 * deviation
    halves = fired[:, ::2].ravel(), fired[:, 1::2].ravel()
    if deviation:
        assert abs(np.corrcoef(*halves)[0, 1]) < 0.12


# Two rules on one grid


def inherited(rules, state):
    """What each cell follows once those that are not mature have asked their neighbours."""
    mature = state[..., 3] > 0.1
    after = rules.copy()
    for row, column in np.argwhere(~mature):
        rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        around = mature[rows, columns]
        alphas, theirs = state[rows, columns, 3][around], rules[rows, columns][around]
        if around.any():
            after[row, column] = theirs[alphas == alphas.max()].min()
    return after


def mixed_step(weights, rules, state, angle):
    """One step of all cells in NumPy and float64: each is updated as its own rule says."""
    rules, before = inherited(rules, state), living_mask(state)
    updates = [
        np.maximum(perceive(state, angle) @ w.hidden_kernel + w.hidden_bias, 0) @ w.update_kernel
        + w.update_bias
        for w in weights
    ]
    state = state + np.choose(rules[..., None], updates)
    return rules, np.where((before & living_mask(state))[..., None], state, 0.0)


def get_rules(page) -> np.ndarray:
    rules = np.array(page.evaluate("Array.from(player.rules())"))
    return rules.reshape(2 * (stats(page)["size"],))


def test_cells_follow_their_own_rule_and_new_ones_their_strongest_neighbours(open_page):
    models = {"one": steady_nca(seed=10), "other": steady_nca(hidden=40, seed=11)}
    weights = [
        Weights(
            *(
                np.asarray(v[...], float)
                for layer in (nca.hidden, nca.update)
                for v in (layer.kernel, layer.bias)
            )
        )
        for nca in models.values()
    ]
    page = open_page(models, size=16)
    page.evaluate("player.pause()")
    slide(page, "Angle", 40)
    state = random_state(16, 16).astype(float)
    rules = np.random.default_rng(3).integers(0, 2, (16, 16))
    set_state(page, state)
    page.evaluate("values => player.setRules(values)", rules.ravel().tolist())
    first = rules
    for _ in range(20):
        rules, state = mixed_step(weights, rules, state, np.radians(40))
        page.evaluate("player.step(1, {fireAll: true})")
        lives = living_mask(state)
        np.testing.assert_array_equal(get_rules(page)[lives], rules[lives])
        np.testing.assert_allclose(get_state(page), state, rtol=0, atol=1e-4)
    assert (rules != first).sum() > 20 and set(rules[lives]) == {0, 1}


def test_of_equally_strong_neighbours_the_first_rule_wins(open_page):
    page = open_page({"one": adding_nca(), "other": adding_nca((0.3, 0, 0, 0.2, 0))}, size=9)
    page.evaluate("player.pause()")
    state = np.zeros((9, 9, 5))
    state[4, [3, 5], 3] = 1.0
    set_state(page, state)
    page.evaluate("player.setRules(Array.from({length: 81}, (_, i) => i % 9 >= 5 ? 1 : 0))")
    page.evaluate("player.step(1, {fireAll: true})")
    expected = [[0, 0, 0, 0.1, 0.1, 0.1, 0.3, 0, 0]]
    expected[0][2], expected[0][5] = 0.1, 0.3
    np.testing.assert_allclose(get_state(page)[4, :, 0], expected[0], atol=1e-6)
    assert get_rules(page)[4, 4] == 0


def test_the_brush_grafts_and_plants_another_rule(open_page):
    page = open_page({"one": adding_nca(), "other": adding_nca((0.3, 0, 0, 0.2, 0))}, size=32)
    page.evaluate("player.pause()")
    state = np.full((32, 32, 5), 0.5)
    set_state(page, state)
    assert not get_rules(page).any()
    page.get_by_label("Graft the rule").check(force=True)
    assert page.get_by_label("Rule in the brush").input_value() == "1"
    page.mouse.move(*point(page, 10, 10))
    page.mouse.down()
    page.mouse.move(*point(page, 10, 20))
    page.mouse.up()
    grafted, distance = get_rules(page) == 1, distances(32, (10, 10), (10, 20))
    assert grafted[distance < 3.5].all() and not grafted[distance > 4.5].any()
    np.testing.assert_array_equal(get_state(page), state)
    turn(page)
    assert page.locator("#legend").inner_text().split() == [
        "one",
        str((~grafted).sum()),
        "other",
        str(grafted.sum()),
    ]
    tinted = (pixels(page) != pixels(page)[31, 31]).any(axis=-1)
    np.testing.assert_array_equal(tinted, grafted)
    page.get_by_label("Plant a seed").check(force=True)
    page.mouse.click(*point(page, 30, 1))
    assert get_rules(page)[30, 1] == 1 and get_state(page)[30, 1, 4] == 1
    page.evaluate("player.step(1, {fireAll: true})")
    reds = get_state(page)[..., 0] - np.where(
        np.arange(1024).reshape(32, 32) == 30 * 32 + 1, 0, 0.5
    )
    np.testing.assert_allclose(reds, np.where(get_rules(page) == 1, 0.3, 0.1), atol=1e-6)
    page.get_by_label("Model").select_option("other")  # A whole body's rule ends the graft.
    assert (get_rules(page) == 1).all()


def test_rules_of_other_channels_share_no_grid(open_page):
    page = open_page({"one": adding_nca(), "wider": steady_nca(9, 20)})
    refused = "“wider” has 9 channels, this body 5: they cannot share a grid."
    options = page.get_by_label("Rule in the brush").locator("option")
    assert options.nth(1).is_disabled() and "9 channels, not 5" in options.nth(1).text_content()
    page.get_by_label("Graft the rule").check(force=True)
    turn(page)
    assert page.locator("#notice").text_content() == refused
    script = "try { player.setRules(new Array(256).fill(1)) } catch (error) { error.message }"
    assert page.evaluate(script) == refused
    assert not get_rules(page).any()


# The page by itself


def test_it_evaluates_no_strings(browser, tmp_path):
    script = """new Promise(done => setTimeout(() => {
        try { done(eval("'evaluated'")); } catch (error) { done(error.name); }
    }))"""
    with contextlib.closing(browser.new_page()) as page:
        page.goto(save_player(tmp_path / "player.html", adding_nca(), size=16).as_uri())
        assert page.evaluate(script) == "EvalError"


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_it_grows_by_itself(open_page, motion):
    page = open_page(adding_nca(), size=72, manual=False, reduced_motion=motion)
    wait_until(page, "Number(document.querySelector('#steps').textContent) > 9")
    assert int(page.locator("#living").text_content()) > 1
    wait_until(page, "Number(document.querySelector('#rate').textContent) > 0")


def test_it_starts_from_the_seed(open_page):
    page = open_page(steady_nca(), size=17)
    np.testing.assert_array_equal(get_state(page), seed_state(17, 17))


def test_a_page_is_small():
    nca = steady_nca()
    one = len(player_html(nca).encode())
    four = len(player_html({name: nca for name in "abcd"}).encode())
    assert one < 110_000
    assert four - one < 3 * 46_000


def test_a_server_is_asked_for_the_page_alone(browser):
    asked = []
    content = player_html(adding_nca(), size=16).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with contextlib.closing(browser.new_page()) as page:
            page.goto(f"http://127.0.0.1:{server.server_port}/player")
            wait_until(page, "player.stats().steps > 20")
        server.shutdown()
    assert asked == ["/player"]


def test_it_tells_a_death_from_an_overflow(open_page):
    notice = "document.querySelector('#notice').textContent"
    page = open_page({"dies": adding_nca((0, 0, 0, -2, 0)), "bursts": adding_nca((3e38,) * 5)})
    turn(page)
    assert "Nothing is alive" in page.evaluate(notice)
    page.get_by_label("Model").select_option("bursts")
    page.get_by_role("button", name="Reset").click()
    assert page.evaluate("(turnFrames(1), document.querySelector('#notice').textContent)") == ""
    turn(page, 2)
    assert "overflowed" in page.evaluate(notice)
    page.get_by_label("Model").select_option("dies")
    page.get_by_role("button", name="Reset").click()
    turn(page)
    assert "Nothing is alive" in page.evaluate(notice)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 3, 4])
def test_one_value_that_is_no_number_is_named_until_it_is_erased(open_page, channel, value):
    notice = "document.querySelector('#notice').textContent"
    page = open_page(adding_nca((0.0,) * 5), size=9)
    page.evaluate("player.pause()")
    state = get_state(page).copy()
    state[4, 4, channel] = value
    set_state(page, state)
    turn(page)
    assert "NaN or infinity" in page.evaluate(notice)
    page.get_by_role("button", name="Step").click()
    turn(page)
    gone = channel == 3 and value == -np.inf  # That alpha is dead, and so is emptied.
    assert ("NaN or infinity" in page.evaluate(notice)) is not gone
    slide(page, "Brush size", 3)
    page.mouse.move(*point(page, 4, 4))
    page.mouse.down()
    page.mouse.up()
    turn(page)
    assert "Nothing is alive" in page.evaluate(notice)


def test_a_nan_spreads_as_in_jax(open_page):
    nca = steady_nca(5, 12)
    state = random_state(12, 5)
    state[3, 3, 3], state[8, 8, 0] = np.nan, np.nan  # one in a dead part, one in a living
    page = open_page(nca, size=12)
    set_state(page, state)
    step, spread = jax_step(nca, 12), []
    for _ in range(4):
        state = step(state)
        page.evaluate("player.step(1, {fireAll: true})")
        is_nan = np.isnan(get_state(page))
        np.testing.assert_array_equal(is_nan, np.isnan(state))
        spread.append(is_nan.any(-1).sum())
    assert stats(page)["living"] == np.sum(~(np.asarray(state)[..., 3] <= np.float32(0.1)))
    assert spread[0] > 9 and spread == sorted(spread) and spread[-1] < 144


# The controls


def test_pause_stops_and_play_goes_on(open_page):
    page = open_page(adding_nca())
    turn(page, 3)
    assert page.locator("#steps").text_content() == "3"
    page.get_by_role("button", name="Pause").click()
    turn(page, 3)
    assert page.locator("#steps").text_content() == "3"
    page.get_by_role("button", name="Play").click()
    turn(page, 2)
    assert page.locator("#steps").text_content() == "5"


def test_step_takes_one_and_reset_returns_to_the_seed(open_page):
    page = open_page(adding_nca(), size=15)
    for steps in (1, 2):
        page.get_by_role("button", name="Step").click()
        turn(page, 4)
        assert page.locator("#steps").text_content() == str(steps)
    assert page.locator("#living").text_content() == str(5 * 5)
    page.get_by_role("button", name="Reset").click()
    turn(page)
    assert page.locator("#steps").text_content() == "0"
    assert page.locator("#living").text_content() == "1"
    np.testing.assert_array_equal(get_state(page), seed_state(15, 15, 5))


@pytest.mark.parametrize("place, steps_of_16_frames", [(0, 2), (1, 4), (3, 16), (4, 32), (7, 256)])
def test_speed_is_steps_a_frame(open_page, place, steps_of_16_frames):
    page = open_page(adding_nca(), size=8)
    slide(page, "Speed", place)
    turn(page, 16)
    assert stats(page)["steps"] == steps_of_16_frames


@pytest.mark.parametrize("diameter", [1, 8])
def test_a_drag_erases(open_page, diameter):
    page = open_page(adding_nca(), size=32)
    page.evaluate("player.pause()")
    set_state(page, np.ones((32, 32, 5)))
    slide(page, "Brush size", diameter)
    start, end = (6, 5), (21, 26)
    page.mouse.move(*point(page, *start))
    page.mouse.down()
    page.mouse.move(*point(page, *end))  # at once: the brush fills the way between
    page.mouse.up()
    page.mouse.move(*point(page, 30, 1))  # no longer pressed
    erased = (get_state(page) == 0).all(axis=-1)
    distance = distances(32, start, end)
    assert erased[distance < max(diameter / 2 - 0.5, 0.3)].all()
    assert not erased[distance > diameter / 2 + 0.5].any()
    assert (get_state(page)[~erased] == 1).all()
    turn(page)
    assert page.locator("#living").text_content() == str((~erased).sum())


def test_the_brush_plants_seeds(open_page):
    page = open_page(adding_nca(), size=32)
    page.evaluate("player.pause()")
    set_state(page, np.full((32, 32, 5), 0.5))
    page.get_by_label("Plant a seed").check(force=True)
    slide(page, "Brush size", 6)
    page.mouse.move(*point(page, 4, 9))
    page.mouse.down()
    page.mouse.move(*point(page, 4, 12))  # too near for another
    page.mouse.move(*point(page, 4, 16))
    page.mouse.up()
    expected = np.full((32, 32, 5), 0.5)
    expected[4, [9, 16]] = [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(get_state(page), expected)


def test_a_drag_may_leave_the_grid(open_page):
    page = open_page(adding_nca(), size=16)
    page.evaluate("player.pause()")
    set_state(page, np.ones((16, 16, 5)))
    page.mouse.move(*point(page, 8, 14))
    page.mouse.down()
    page.mouse.move(*point(page, 8, 40))
    page.mouse.up()
    state = get_state(page)
    assert (state[8, 15] == 0).all()
    assert (state[:, 0] == 1).all()


def test_a_finger_erases_and_does_not_scroll(open_page):
    phone = {"width": 360, "height": 400}
    page = open_page(adding_nca(), size=32, has_touch=True, is_mobile=True, viewport=phone)
    page.evaluate("player.pause()")
    set_state(page, np.ones((32, 32, 5)))
    start, end = (24, 10), (4, 10)
    session = page.context.new_cdp_session(page)

    def touch(kind, *cells):
        places = [dict(zip("xy", point(page, *cell), strict=True)) for cell in cells]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", start)
    for row in range(24, 3, -4):
        touch("touchMove", (row, 10))
    touch("touchEnd")
    erased = (get_state(page) == 0).all(axis=-1)
    assert erased[distances(32, start, end) < 3.5].all()
    assert not erased[distances(32, start, end) > 4.5].any()
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollHeight > innerHeight")


def test_another_model_lives_on_in_the_same_body(open_page):
    models = {
        "one": adding_nca(fire_rate=0.3),
        "other": steady_nca(5, 12),
        "wider": steady_nca(9, 20),
    }
    page = open_page(models, size=16)
    page.evaluate("player.pause()")
    state = random_state(16, 5)
    set_state(page, state)
    page.evaluate("player.step(3)")
    steps, state = stats(page)["steps"], get_state(page)
    page.get_by_label("Model").select_option("other")
    assert stats(page)["model"] == "other"
    assert stats(page)["steps"] == steps
    np.testing.assert_array_equal(get_state(page), state)
    assert page.get_by_label("Fire rate").input_value() == "0.5"

    page.evaluate("player.step(1, {fireAll: true})")
    state = jax_step(models["other"], 16)(state)
    np.testing.assert_allclose(get_state(page), state, rtol=0, atol=1e-5)

    page.get_by_label("Model").select_option("wider")
    after = get_state(page)
    np.testing.assert_allclose(after[..., :5], state, rtol=0, atol=1e-5)
    assert after.shape == (16, 16, 9) and (after[..., 5:] == 0).all()
    assert page.get_by_label("View").locator("option").count() == 2 + 5 + 1  # and by rule


def test_one_model_needs_no_choice(open_page):
    assert not open_page(adding_nca()).get_by_label("Model").is_visible()


@pytest.mark.parametrize("scheme, behind", [("light", 255), ("dark", (0x1B, 0x1F, 0x1B))])
def test_the_views_show_what_they_say(open_page, scheme, behind):
    page = open_page(adding_nca(), size=8, color_scheme=scheme)
    page.evaluate("player.pause()")
    state = np.random.default_rng(0).uniform(0, 1, (8, 8, 5)).astype(np.float32)
    state[..., :3] *= state[..., 3:4]  # premultiplied
    state[0, 0] = 2.0, -1.0, 0.5, 1.5, 0.0
    state[0, 1] = 0.0
    state[0, 2:4, 4] = 1.0, -1.0
    set_state(page, state)
    turn(page)
    alpha = np.clip(state[..., 3:4], 0, 1)
    expected = np.clip(255 * state[..., :3] + (1 - alpha) * behind, 0, 255)
    np.testing.assert_allclose(pixels(page), expected, atol=0.51)

    page.get_by_label("View").select_option("Alpha")
    turn(page)
    grey = pixels(page).mean(axis=-1)
    order = np.argsort(alpha.ravel())
    contrast = np.abs(grey - np.mean(behind)).ravel()[order]
    assert (np.diff(contrast) >= -1).all() and contrast[-1] > 150

    page.get_by_label("View").select_option("Hidden channel 4")
    turn(page)
    picture = pixels(page)
    np.testing.assert_array_equal(picture[0, 1], np.broadcast_to(behind, 3))
    assert picture[0, 2, 0] > picture[0, 2, 2]  # above zero: orange
    assert picture[0, 3, 0] < picture[0, 3, 2]  # below: blue
    assert page.locator("#scale").is_visible()


def test_the_picture_follows_the_theme(open_page):
    page = open_page(adding_nca(), size=8)
    page.evaluate("player.pause()")
    set_state(page, np.zeros((8, 8, 5)))
    turn(page)
    assert (pixels(page) == 255).all()
    page.emulate_media(color_scheme="dark")
    turned_dark = """() => {
        turnFrames(1);
        const context = document.querySelector("canvas").getContext("2d");
        return context.getImageData(0, 0, 1, 1).data[0] < 64;
    }"""
    wait_until(page, turned_dark)


def test_the_keyboard(open_page):
    page = open_page({"one": adding_nca(), "other": steady_nca(5, 12)})

    def press(*keys):
        for key in keys:
            page.keyboard.press(key)
        turn(page)

    press("Space")
    assert page.get_by_role("button", name="Play").is_visible()
    assert stats(page)["steps"] == 0
    press("s", "s")
    assert stats(page)["steps"] == 2
    press("r")
    assert stats(page)["steps"] == 0
    press("m")
    assert stats(page)["model"] == "other"
    press("m")
    assert stats(page)["model"] == "one"
    press("v")
    assert page.get_by_label("View").input_value() == "3"
    press("p")
    assert page.get_by_label("Plant a seed").is_checked()
    press("g")
    assert page.get_by_label("Graft the rule").is_checked()
    press("i")
    assert page.get_by_label("Pick").is_checked()
    press("e")
    assert page.get_by_label("Erase").is_checked()
    press("z", "z", "x")
    assert "scale(1.5)" in page.locator("#lens").get_attribute("style")
    press("x")
    press("]", "]", "[")
    assert page.get_by_label("Brush size").input_value() == "9"
    press("+", "+", "-")
    assert page.get_by_label("Speed").input_value() == "4"
    press("Control+s")
    assert stats(page)["steps"] == 0
    press("Space")
    assert stats(page)["steps"] == 2  # a frame at twice the speed
    press("Alt+r")
    assert stats(page)["steps"] == 4


def test_space_on_a_button_presses_it_once(open_page):
    page = open_page(adding_nca())
    page.get_by_role("button", name="Step").focus()
    page.keyboard.press("Space")
    turn(page)
    assert stats(page) | {"steps": 1, "playing": False} == stats(page)


def test_the_brush_follows_the_arrows(open_page):
    page = open_page(adding_nca(), size=17)
    page.evaluate("player.pause()")
    set_state(page, np.ones((17, 17, 5)))
    slide(page, "Brush size", 1)
    page.locator("canvas").focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft", "Enter", *["ArrowDown"] * 20, "Enter"):
        page.keyboard.press(key)
    erased = (get_state(page) == 0).all(axis=-1)
    assert np.argwhere(erased).tolist() == [[6, 7], [16, 7]]


def test_everything_has_a_name_and_shows_its_focus(open_page):
    page = open_page({"one": adding_nca(), "other": adding_nca()})
    names = set()
    for _ in range(24):
        page.keyboard.press("Tab")
        focus = page.evaluate("""() => {
            const element = document.activeElement;
            const shown = element.type === "radio" ? element.nextElementSibling : element;
            const name = element.ariaLabel || element.closest("label")?.innerText
                || element.innerText;
            return [name, getComputedStyle(shown).outlineStyle];
        }""")
        if focus[0] and page.evaluate("document.activeElement !== document.body"):
            names.add(focus[0].strip())
            assert focus[1] == "solid", focus
    expected = "Pause Step Reset Model Erase View Speed Picture Video Help".split()
    expected += ["Brush size", "Fire rate", "Angle in degrees", "Copy link", "Zoom in"]
    expected += ["Rule in the brush"]
    assert names >= set(expected)
    assert any(name.startswith("Cellular automaton.") for name in names)


@pytest.mark.parametrize("width", [360, 500, 640, 1200])
def test_nothing_overflows_sideways(open_page, width):
    page = open_page(adding_nca(), viewport={"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for control in page.locator("button:visible, select:visible, input:visible, canvas, dl").all():
        box = control.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width


# To look closer


def test_pick_says_what_a_cell_holds(open_page):
    page = open_page({"one": adding_nca(), "other": adding_nca()}, size=16)
    page.evaluate("player.pause()")
    state = get_state(page).copy()
    state[3, 5] = 0.25, -0.5, 0.0, 1.5, -2.0
    set_state(page, state)
    page.get_by_label("Pick").check(force=True)
    page.mouse.click(*point(page, 3, 5))
    turn(page)
    assert page.locator("#picked-title").text_content() == "Row 3, column 5, follows one"
    shown = page.locator("#picked li").all_inner_texts()
    assert [text.split() for text in shown] == [
        ["red", "0.25"],
        ["green", "−0.50"],
        ["blue", "0.00"],
        ["alpha", "1.50"],
        ["4", "−2.00"],
    ]
    np.testing.assert_array_equal(get_state(page), state)
    page.locator("canvas").focus()
    page.keyboard.press("Enter")
    turn(page)
    assert "alpha 1.50, 4 −2.00" in page.locator("#notice").text_content()  # which is read aloud


def test_zoomed_in_the_brush_meets_the_cell_that_is_under_it(open_page):
    page = open_page(adding_nca(), size=16)
    page.evaluate("player.pause()")
    set_state(page, np.ones((16, 16, 5)))
    slide(page, "Brush size", 1)
    stage = page.locator("#stage").bounding_box()
    page.mouse.move(*point(page, 4, 12))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    wait_until(page, "document.querySelector('canvas').getBoundingClientRect().width > 800")
    x, y = point(page, 4, 12)
    page.mouse.click(x, y)
    assert np.argwhere((get_state(page) == 0).all(-1)).tolist() == [[4, 12]]
    page.mouse.wheel(-10_000, 10_000)  # to the lower left corner, and no farther
    corner = [stage["x"] + 5, stage["y"] + stage["height"] - 5]
    wait_until(page, "document.querySelector('canvas').getBoundingClientRect().left > 0")
    page.mouse.click(*corner)
    assert (get_state(page)[15, 0] == 0).all()


def test_two_fingers_zoom_and_draw_nothing(open_page):
    page = open_page(adding_nca(), has_touch=True, is_mobile=True, viewport=PHONE)
    page.evaluate("player.pause()")
    set_state(page, np.ones((16, 16, 5)))
    box = page.locator("canvas").bounding_box()
    touch = page.context.new_cdp_session(page)
    for kind, apart in (
        ("Start", None),
        ("Start", 0.1),
        ("Move", 0.2),
        ("Move", 0.3),
        ("End", None),
    ):
        both = [box["x"] + box["width"] * (0.5 + sign * (apart or 0.1)) for sign in (-1, 1)]
        points = [{"x": x, "y": box["y"] + box["height"] / 2, "id": i} for i, x in enumerate(both)]
        points = points[: 0 if kind == "End" else 1 if apart is None else 2]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    assert page.locator("canvas").bounding_box()["width"] == pytest.approx(
        3 * box["width"], rel=0.05
    )
    assert (get_state(page) == 1).all()


@pytest.mark.parametrize("width, height", [(360, 560), (390, 664), (740, 330)])
def test_a_phone_shows_grid_and_brush_at_once(open_page, width, height):
    viewport = {"width": width, "height": height}
    page = open_page({"one": adding_nca(), "other": adding_nca()}, viewport=viewport)
    if width < height:
        assert page.locator("#stage").bounding_box()["width"] > 0.94 * width
    for name in ("Erase", "Plant a seed", "Graft the rule", "Pick"):
        box = page.get_by_label(name).locator("xpath=..").bounding_box()
        assert box["y"] + box["height"] <= height and box["height"] >= 44


def test_the_hint_goes_once_it_is_followed(open_page):
    page = open_page(adding_nca(), size=16)
    assert page.locator("#hint").is_visible()
    page.mouse.click(*point(page, 4, 12))
    assert not page.locator("#hint").is_visible()


# To keep and to send


def test_the_link_restores_the_page(open_page):
    models = {"one": adding_nca(), "other, with a % & #": steady_nca(5, 12)}
    page = open_page(models)
    assert "#" not in page.url
    page.get_by_label("Model").select_option(index=1)
    page.get_by_label("View").select_option("Hidden channel 4")
    slide(page, "Angle", -35)
    slide(page, "Fire rate", 0.8)
    slide(page, "Speed", 5)
    link = page.url.partition("#")[2]
    other = open_page(models, link=f"#{link}")
    for restored in (other, page):
        assert stats(restored)["model"] == "other, with a % & #"
        controls = ["View", "Angle", "Fire rate", "Speed"]
        values = [restored.get_by_label(name).input_value() for name in controls]
        assert values == ["4", "-35", "0.8", "5"]
    other.evaluate("location.hash = '#angle=90'")
    wait_until(other, "player.stats().model === 'one'")
    assert other.get_by_label("Angle").input_value() == "90"
    assert other.get_by_label("Fire rate").input_value() == "1"


@pytest.mark.parametrize(
    "link, said",
    [
        ("#model=none%20such", "no model “none such”"),
        ("#view=99", "view is “99”"),
        ("#angle=wide", "angle is “wide”"),
        ("#fire-rate=", "fire-rate is “”"),
    ],
)
def test_a_link_that_is_not_of_this_page_is_named(open_page, link, said):
    page = open_page({"one": adding_nca(), "other": steady_nca(5, 12)}, link=link)
    turn(page)
    assert said in page.locator("#notice").text_content()
    values = [page.get_by_label(name).input_value() for name in ("View", "Angle", "Fire rate")]
    assert values == ["color", "0", "1"]


def test_the_link_is_copied(open_page):
    page = open_page(adding_nca(), permissions=["clipboard-read", "clipboard-write"])
    slide(page, "Angle", 45)
    page.get_by_role("button", name="Copy link").click()
    wait_until(page, "(turnFrames(1), document.querySelector('#notice').textContent !== '')")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert page.url.endswith("#angle=45")


NO_RECORDER = "delete window.MediaRecorder;"


@pytest.mark.parametrize("button, script", [("Picture", ""), ("Video", NO_RECORDER)])
def test_a_picture_is_saved(open_page, button, script):
    page = open_page(adding_nca(), size=17, script=script)
    page.evaluate("player.step(5); player.pause()")
    turn(page)
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    assert download.value.suggested_filename == "nca-5.png"
    picture = np.asarray(Image.open(download.value.path()).convert("RGB"))
    assert picture.shape == (578, 578, 3)
    np.testing.assert_array_equal(picture, pixels(page).repeat(34, 0).repeat(34, 1))


def test_a_video_is_saved(open_page):
    page = open_page(adding_nca(), size=16, manual=False)
    with page.expect_download() as download:
        page.get_by_role("button", name="Video").click()
        page.wait_for_timeout(700)
        page.get_by_role("button", name="Stop").click()
    content = download.value.path().read_bytes()
    assert content[:4] == b"\x1aE\xdf\xa3" or content[4:8] == b"ftyp"  # WebM, or MP4
    assert len(content) > 1000
    assert page.get_by_role("button", name="Video").is_visible()


# In a notebook


def shown(nca, **options) -> str:
    """The HTML that a notebook gets."""
    outputs = []
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as monkeypatch:
        warnings.simplefilter("error")
        monkeypatch.setattr(IPython.display, "display", outputs.append)
        show_player(nca, **options)
    (output,) = outputs
    return output._repr_html_()


def test_two_players_in_sandboxed_frames_do_not_interfere(browser):
    errors = []
    with contextlib.closing(browser.new_page()) as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.set_content(shown(adding_nca(), size=16) + shown({"é": adding_nca()}, size=24))
        assert page.locator("iframe[sandbox='allow-scripts allow-downloads']").count() == 2
        one, other = page.frames[1:]
        for frame in (one, other):
            wait_until(frame, "player.stats().steps > 3")
        one.get_by_role("button", name="Pause").click()
        steps = one.evaluate("player.stats().steps")
        wait_until(other, f"player.stats().steps > {steps + 20}")
        assert one.evaluate("player.stats().steps") == steps
        assert [frame.evaluate("player.stats().size") for frame in (one, other)] == [16, 24]
        other.locator("canvas").click(position={"x": 20, "y": 20})
    assert errors == []


@pytest.mark.parametrize("width", [360, 639, 641, 800, 1100])
def test_a_notebook_shows_no_inner_scroll_bar(browser, width):
    with contextlib.closing(browser.new_page()) as page:
        content = shown({name: adding_nca() for name in "ab"}, size=16)
        page.set_content(f'<div style="width: {width}px">{content}</div>')
        frame = page.frames[1]
        wait_until(frame, "player.stats().steps > 0")
        inner, outer = frame.evaluate("[document.documentElement.scrollHeight, innerHeight]")
        assert inner <= outer
        bottom = frame.evaluate("document.querySelector('main').getBoundingClientRect().bottom")
        assert outer - bottom < 130  # nor much empty space


# What it refuses


def test_names_cannot_break_out(open_page):
    names = [
        "</script><script>window.broken = true</script>",
        "<!--<script>",
        "<img src=x onerror='window.broken = true'>",
        "$data ${script} $$ \\u003c & &lt; \" ' \u2028",
        "🦎 growing",
    ]
    page = open_page({name: adding_nca() for name in names})
    turn(page)
    assert page.evaluate("window.broken") is None
    assert page.locator("#model").evaluate("e => [...e.options].map(o => o.text)") == [
        re.sub(" +", " ", name).strip(" ") for name in names
    ]
    page.get_by_label("Model").select_option(index=0)
    assert stats(page)["model"] == names[0]


def test_a_name_may_be_any_string(tmp_path):
    save_player(tmp_path / "player.html", {"\ud83e": adding_nca()})


class OtherRule(NCA):
    def step(self, state, fire, **_):
        return state


class OtherCall(NCA):
    def __call__(self, state, key, **_):
        return state


@pytest.mark.parametrize(
    "make, message",
    [
        (dict, r"nca must be .* at least one as {name: NCA}, got \[\]"),
        (lambda: None, "nca must be an NCA, .* got None"),
        (lambda: [adding_nca()], "nca must be an NCA, .* got a list of 1"),
        (lambda: seed_state(9, 9), r"nca must be an NCA, .* shape \(9, 9, 16\)"),
        (lambda: {1: adding_nca()}, r"nca must be .* {name: NCA}, got \[1\]"),
        (lambda: {"a": adding_nca(), "b": 3}, r"nca\['b'\] must be an NCA, got 3"),
        (lambda: {999 * "x": 3}, rf"nca\['{198 * 'x'}…\] must be an NCA"),
        (lambda: OtherRule(rngs=nnx.Rngs(0)), "nca must be .* NCA's own rule .* got .*OtherRule"),
        (lambda: OtherCall(rngs=nnx.Rngs(0)), "nca must be .* NCA's own rule .* got .*OtherCall"),
    ],
)
def test_bad_automata_are_named(make, message):
    nca = make()
    with pytest.raises(ValueError, match=message) as refusal:
        player_html(nca)
    assert len(str(refusal.value)) < 400 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layer, parameter", [("hidden", "kernel"), ("update", "bias")])
def test_weights_that_are_no_numbers_are_named(layer, parameter, value):
    nca = adding_nca()
    variable = getattr(getattr(nca, layer), parameter)
    variable[...] = variable[...].at[-1].set(value)
    with pytest.raises(ValueError, match=f"nca.{layer}.{parameter} must be finite"):
        player_html(nca)


@pytest.mark.parametrize("layer, shape", [("hidden", (10, 4)), ("update", (5, 4))])
def test_weights_of_another_architecture_are_named(layer, shape):
    nca = adding_nca()
    setattr(nca, layer, nnx.Linear(*shape, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"nca\['lizard'\] must be an NCA with .* layers"):
        player_html({"lizard": nca})


@pytest.mark.parametrize("size", [7, 257, 512, 10**9, 72.0, "72", None, True])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match="size must be an integer from 8 to 256"):
        player_html(adding_nca(), size=size)


def test_saving_returns_the_path(tmp_path):
    path = save_player(str(tmp_path / "a.html"), adding_nca(), size=20)
    assert path == tmp_path / "a.html"
    assert path.read_text(encoding="utf-8") == player_html(adding_nca(), size=20)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = save_player("~/new/a.html", adding_nca(), size=20)
    assert path == tmp_path / "new" / "a.html" and path.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failed_save_leaves_the_old_page(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.html"
    path.write_text("old")

    def fail(*_):
        raise KeyboardInterrupt

    if moment == "after":
        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            save_player(path, adding_nca())
    else:
        with pytest.raises(ValueError, match="size"):
            save_player(path, adding_nca(), size=1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# A trained model


def open_lizard(open_page, regime):
    """A player of the bundled lizard, and its loss: the mean squared error of its RGBA."""
    try:
        nca, meta = pretrained("🦎", regime), pretrained_meta("🦎", regime)
    except ValueError as error:
        pytest.skip(f"no trained lizard is bundled: {error}")
    target = load_emoji("🦎", size=meta["size"], padding=meta["padding"])
    page = open_page(nca, size=target.shape[0])
    page.evaluate("player.pause()")
    return page, lambda: np.mean((get_state(page)[..., :4] - target) ** 2)


def test_a_lizard_grows_from_the_seed(open_page):
    page, loss = open_lizard(open_page, "persistent")
    set_state(page, np.zeros_like(get_state(page)))
    empty = loss()
    page.evaluate("player.reset(); player.step(100)")
    assert loss() < empty / 10


def test_a_wounded_lizard_grows_back(open_page):
    page, loss = open_lizard(open_page, "regenerating")
    page.evaluate("player.step(400)")  # After 200, now and then one is still growing.
    whole = loss()
    middle = stats(page)["size"] // 2
    slide(page, "Brush size", 7)
    page.mouse.move(*point(page, middle + 2, middle + 4))
    page.mouse.down()
    page.mouse.move(*point(page, middle + 6, middle + 4))
    page.mouse.up()
    wounded = loss()
    assert wounded > 10 * whole
    page.evaluate("player.step(300)")
    assert loss() < wounded / 10


# The decoder


class Decoder(nnx.Module):
    """Notebook 04's, with random weights."""

    def __init__(self, channels, hidden=12, colours=4):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(channels + 8, hidden, rngs=rngs)
        self.hidden.bias[...] = jnp.linspace(-0.3, 0.3, hidden)
        self.colour = nnx.Linear(hidden, colours, rngs=rngs)


def drawn(decoder, state, factor):
    """Every pixel by itself, in float64, at one of the eight places of a cell along each axis."""
    size = len(state)
    kernels = [np.asarray(layer.kernel[...], float) for layer in (decoder.hidden, decoder.colour)]
    biases = [np.asarray(layer.bias[...], float) for layer in (decoder.hidden, decoder.colour)]
    padded = np.pad(state.astype(float), [(1, 1), (1, 1), (0, 0)])
    picture = np.zeros((size * factor, size * factor, 4))
    for pixel in np.ndindex(picture.shape[:2]):
        place = np.array(pixel) / factor + 1 / 16 + 0.5  # in cells of `padded`
        (up, left), (down, right) = np.floor(place).astype(int), place % 1
        share = np.outer([1 - down, down], [1 - right, right])[..., None]
        mixed = (share * padded[up : up + 2, left : left + 2]).sum((0, 1))
        if mixed.any():
            turns = 2 * np.pi * np.array([down, right, 2 * down, 2 * right])
            told = np.concatenate([mixed, np.sin(turns), np.cos(turns)])
            hidden = np.maximum(told @ kernels[0] + biases[0], 0)
            picture[pixel] = mixed[:4] + hidden @ kernels[1] + biases[1]
    return picture


@pytest.mark.parametrize("press, factor", [(None, 4), ("Space", 8)], ids=["plays", "paused"])
def test_sharp_is_what_the_decoder_draws(open_page, press, factor):
    decoder = Decoder(5)
    page = open_page(adding_nca(), size=8, decoder=decoder, script="Math.random = () => 1;")
    state = np.zeros((8, 8, 5), np.float32)
    state[2:5, 1:4] = np.random.default_rng(1).uniform(0, 1, (3, 3, 5))
    state[0, 7] = 0.5, 0.2, 0.1, 0.9, -1.0  # a corner: its pixels beyond the grid are not drawn
    page.get_by_label("View").select_option("Colour, sharp")
    if press:
        page.keyboard.press(press)
    set_state(page, state)
    turn(page)
    state = get_state(page)
    expected = drawn(decoder, state, factor)
    expected = np.clip(255 * (expected[..., :3] + 1 - np.clip(expected[..., 3:], 0, 1)), 0, 255)
    script = """() => { const canvas = document.querySelector("canvas");
        return [canvas.width, ...canvas.getContext("2d").getImageData(0, 0, canvas.width,
            canvas.width).data]; }"""
    side, *shown = page.evaluate(script)
    assert side == 8 * factor
    shown = np.reshape(shown, (side, side, 4))[..., :3]
    np.testing.assert_allclose(shown, expected, rtol=0, atol=0.6)
    page.get_by_label("View").select_option("Colour")
    turn(page)
    assert page.evaluate("document.querySelector('canvas').width") == 8


def test_a_page_without_a_decoder_offers_no_sharp_view(open_page):
    page = open_page(adding_nca(), link="#view=sharp")
    turn(page)
    assert page.get_by_label("View").input_value() == "color"


@pytest.mark.parametrize(
    "decoder, words",
    [
        (Decoder(16), "for cells of 5 channels, got 'one for 16'"),
        (Decoder(5, colours=3), "decoder.colour must be a layer from 12 to 4"),
        (nnx.Linear(13, 4, rngs=nnx.Rngs(0)), "decoder must be a module with"),
    ],
    ids=["channels", "colours", "layers"],
)
def test_a_decoder_that_does_not_fit_is_refused(decoder, words):
    refuses(lambda: player_html(adding_nca(), decoder=decoder), words)


def test_a_decoder_that_holds_nan_is_refused():
    decoder = Decoder(5)
    decoder.colour.bias[...] = jnp.full(4, jnp.nan)
    refuses(lambda: player_html(adding_nca(), decoder=decoder), "decoder")
