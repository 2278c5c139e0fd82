"""Rules of a reader's own: a rollout gives what a plain Python loop over the automaton gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from nca_helpers import NCA, living_mask, perceive, rollout, rollout_frames

CHANNELS, HIDDEN, GRID, STEPS = 5, 64, (12, 11), 4
KEY = jax.random.PRNGKey(3)


class Torus(NCA):
    """A grid whose edges meet."""

    def step(self, state, fire, *, angle=0.0, step_size=1.0):
        wrapped = jnp.pad(state, [(0, 0)] * (state.ndim - 3) + [(2, 2), (2, 2), (0, 0)], "wrap")
        around = jnp.pad(fire, [(0, 0)] * (fire.ndim - 2) + [(2, 2), (2, 2)], "wrap")
        after = super().step(wrapped, around, angle=angle, step_size=step_size)
        return after[..., 2:-2, 2:-2, :]


class Immortal(NCA):
    """No living mask."""

    def step(self, state, fire, *, angle=0.0, step_size=1.0):
        update = self.update(nnx.relu(self.hidden(perceive(state, angle))))
        return state + jnp.where(fire[..., None], step_size * update, 0.0)


class Compass(NCA):
    """Cells know where they are."""

    def step(self, state, fire, **frame):
        rows = jnp.linspace(-1, 1, state.shape[-3])[:, None]
        place = jnp.broadcast_to(rows, state.shape[-3:-1])
        return super().step(state.at[..., 4].set(place), fire, **frame)


class FarSighted(NCA):
    """Slopes of slopes: a neighbourhood of 5×5."""

    def step(self, state, fire, *, angle=0.0, step_size=1.0):
        seen = perceive(state, angle)
        far = perceive(seen[..., CHANNELS : 2 * CHANNELS], angle)
        update = self.update(nnx.relu(self.hidden(seen + far)))
        grown = state + jnp.where(fire[..., None], step_size * update, 0.0)
        alive = living_mask(state) & living_mask(grown)
        return jnp.where(alive[..., None], grown, 0.0)


class TwoSteps(NCA):
    """A call of its own, which takes two steps."""

    def __call__(self, state, key, **options):
        first, second = jax.random.split(key)
        return super().__call__(super().__call__(state, first, **options), second, **options)


def with_convolution(**options):
    nca = NCA(**options)
    nca.hidden = nnx.Conv(3 * CHANNELS, HIDDEN, kernel_size=(3, 3), rngs=options["rngs"])
    return nca


def without_bias(**options):
    nca = NCA(**options)
    nca.hidden = nnx.Linear(3 * CHANNELS, HIDDEN, use_bias=False, rngs=options["rngs"])
    return nca


def with_adapter(**options):
    nca = NCA(**options)
    start = nnx.initializers.normal(0.3)  # By default it starts with no effect.
    nca.hidden = nnx.LoRALinear(
        3 * CHANNELS, HIDDEN, lora_rank=2, b_initializer=start, rngs=options["rngs"]
    )
    return nca


def with_counter(**options):
    nca = NCA(**options)
    nca.steps_trained = nnx.Variable(jnp.int32(7))
    nca.is_good = nnx.Variable(jnp.bool_(True))
    return nca


RULES = (Torus, Immortal, Compass, FarSighted, TwoSteps, with_convolution, without_bias)
RULES += (with_adapter, with_counter)
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
EACH_PLACE = pytest.mark.parametrize("place", [(6, 5), (0, 0)], ids=["middle", "corner"])


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make(rule):
    """An automaton with random weights, large enough to grow."""
    nca = rule(channels=CHANNELS, hidden=HIDDEN, rngs=nnx.Rngs(0))
    update = np.random.default_rng(0).normal(0, 0.1, (HIDDEN, CHANNELS))
    nca.update.kernel[...] = jnp.asarray(update, jnp.float32)
    nca.update.bias[...] = jnp.full(CHANNELS, 0.3)
    return nca


def seeds(place, batch=2):
    state = np.zeros((batch, *GRID, CHANNELS), np.float32)
    state[(slice(None), *place, slice(3, None))] = 1.0
    return jnp.asarray(state)


def loop(nca, state, num_steps=STEPS, **options):
    """All states of the plain loop; its step is compiled to save the tests' time."""
    graph, weights = nnx.split(nca)
    step = jax.jit(lambda weights, *args: nnx.merge(graph, weights)(*args, **options))
    frames = [state]
    for t in range(num_steps):
        frames.append(step(weights, frames[-1], jax.random.fold_in(KEY, t)))
    return jnp.stack(frames)


@EACH_PLACE
@EACH_RULE
def test_states_are_those_of_the_plain_loop(rule, place):
    nca, state, options = make(rule), seeds(place), {"angle": 0.3, "step_size": 0.8}
    expected = loop(nca, state, **options)
    assert len(np.unique(np.asarray(expected[-1]))) > 50, "the rule must do something"
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)
    close(rollout(nca, state, KEY, STEPS, **options), expected[-1])
    close(rollout_frames(nca, state, KEY, STEPS, **options), expected)
    jitted = nnx.jit(lambda nca, state: rollout(nca, state, KEY, STEPS, **options))
    close(jitted(nca, state), expected[-1])
    lengths = np.array([2, STEPS])
    close(rollout(nca, state, KEY, lengths, **options)[0], expected[2, 0])


@EACH_RULE
def test_gradients_are_those_of_the_plain_loop(rule):
    state = seeds((0, 0))

    def gradients(run):
        def loss(nca, state):
            return jnp.mean(run(nca, state)[..., :4] ** 2)

        return nnx.jit(nnx.grad(loss, argnums=(0, 1)))(make(rule), state)

    found = gradients(lambda nca, state: rollout(nca, state, KEY, STEPS))
    expected = gradients(lambda nca, state: loop(nca, state)[-1])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        reference.assert_near(one, other, 1e-5)


def twice_reverse(function):
    return jax.grad(lambda x: jax.grad(function)(x).sum())


@pytest.mark.parametrize(
    ("rule", "wrap", "orders"),
    [
        (NCA, lambda function: function, [jax.jacfwd]),
        (NCA, jax.jit, [jax.jacfwd, jax.hessian, twice_reverse]),
        (Torus, jax.jit, [jax.hessian]),
    ],
    ids=["NCA eager", "NCA in jit", "Torus in jit"],
)
def test_derivatives_of_any_order(rule, wrap, orders):
    nca, state, point = make(rule), seeds((6, 5)), jnp.array([0.3, 0.8])

    def value(run):
        def of(point):
            last = run(nca, state, angle=point[0], step_size=point[1])
            return jnp.mean(last[..., :4] ** 2)

        return of

    rolled = value(lambda nca, state, **options: rollout(nca, state, KEY, 3, **options))
    looped = value(lambda nca, state, **options: loop(nca, state, 3, **options)[-1])
    for derive in orders:
        found, expected = wrap(derive(rolled))(point), jax.jit(derive(looped))(point)
        reference.assert_near(found, expected, 1e-4)


def test_the_hessian_of_a_rollout_in_a_jit_of_its_own():
    nca, state, point = make(NCA), seeds((6, 5), batch=2), jnp.array([0.3, 0.8])

    def value(run, point):
        return jnp.mean(run(nca, state, angle=point[0], step_size=point[1])[..., :4] ** 2)

    rolled = jax.jit(lambda p: value(lambda *a, **o: rollout(*a, KEY, 3, **o), p))
    expected = jax.hessian(lambda p: value(lambda *a, **o: loop(*a, 3, **o)[-1], p))
    reference.assert_near(jax.hessian(rolled)(point), jax.jit(expected)(point), 1e-4)


def test_keys_of_another_kind_give_the_plain_loop():
    nca, state = make(NCA), seeds((6, 5), batch=3)
    key = jax.random.key(0, impl="rbg")
    expected = state
    for t in range(STEPS):
        expected = nca(expected, jax.random.fold_in(key, t))
    np.testing.assert_allclose(rollout(nca, state, key, STEPS), expected, atol=2e-6)
    frames = rollout_frames(nca, state, key, STEPS)
    np.testing.assert_allclose(frames[-1], expected, atol=2e-6)


@pytest.mark.parametrize("fire", [np.ones((3, 3), bool), np.ones((2, *GRID)), np.True_], ids=str)
def test_a_fire_mask_of_another_shape_or_kind_is_refused(fire):
    reference.refuses(lambda: make(NCA).step(seeds((6, 5)), fire), "fire must be", "booleans")
