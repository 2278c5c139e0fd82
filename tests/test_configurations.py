"""What readers change in a notebook: refused at once, or carried through to the last cell."""

import re
import sys
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from test_interrupt import Reader, code_cells

import nca_helpers

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]
from notebook_cells import SHOWN, run_cells  # noqa: E402

NOTEBOOKS = {path.name[:2]: path for path in (ROOT / "notebooks").glob("*.ipynb")}

IMPOSSIBLE = [
    *((notebook, "preset =", 'preset = "fast" #', "preset must be") for notebook in NOTEBOOKS),
    ("00", 'emoji = "🦎"', 'emoji = "🦖"', "emoji and regime must be one of .*🦎 growing"),
    ("00", "horizons=2", "horizons=1", "horizons must be an integer of at least 2, got 1"),
    ("00", "samples=2", "samples=0", "samples must be an integer of at least 1, got 0"),
    *(
        (notebook, "seed = 0", "seed = -1", "seed must be an integer from 0")
        for notebook in ("00", "01", "04")
    ),
    ("01", "seed = 0", "seed = 0.5", "seed must be an integer from 0 to 2147483647, got 0.5"),
    ("01", 'regime = "persistent"', 'regime = "still"', "regime must be one of growing, pers"),
    ("01", "batch_size=2", "batch_size=1", "batch_size must be an integer from 2 to 8, got 1"),
    ("01", "batch_size=2", "batch_size=9", "batch_size must be an integer from 2 to 8, got 9"),
    ("01", "steps=(4, 6)", "steps=(6, 4)", r"steps must be \(least, most\), got \(6, 4\)"),
    ("01", "steps=(4, 6)", "steps=(0, 6)", r"steps must be \(least, most\), got \(0, 6\)"),
    ("04", 'others = "🎄', 'others = "🦎', "emoji and others must be 2 to 4 emoji, no two alike"),
    ("04", 'others = "🎄', 'others = "🐠 🎄', "no two alike, got '🦎 🐠 🎄 👁 ❤️'"),
    ("04", "steps=(4, 6)", "steps=(6, 4)", r"steps must be \(least, most\), got \(6, 4\)"),
    ("04", "pool=8", "pool=1", "pool must be an integer of at least 2, got 1"),
    ("04", "held_out=4", "held_out=1", "held_out must be an integer of at least 2, got 1"),
    ("03", "population_size=16", "population_size=15", "population_size must be even, got 15"),
    ("03", "per_device=8", "per_device=2", "per_device must be an integer of at least 4"),
    ("03", "repeats=2", "repeats=0", "repeats must be an integer of at least 1, got 0"),
    ("03", "[4, 6, 8]", "[4, 8, 6]", r"loss_steps must be positive, each .* got \[4, 8, 6\]"),
    ("03", 'emoji = "🦎"', 'emoji = "lizard"', "emoji must be .* is it one of these. 🦎"),
]

HEAD = "import os, nca_helpers\nfrom nca_helpers.checks import check_integer, require\n"


def configure(notebook, monkeypatch, old="", new=""):
    """Runs a configuration cell at `quick`, with one setting changed."""
    for name in ("NCA_PRESET", "NCA_EMOJI", "NCA_REGIME"):
        monkeypatch.delenv(name, raising=False)
    source = code_cells(NOTEBOOKS[notebook], config=(old, new))["config"]
    source = source.replace('preset = "laptop"', 'preset = "quick"')
    names = {}
    exec(HEAD + source, names)
    return names


@pytest.mark.parametrize(("notebook", "old", "new", "message"), IMPOSSIBLE)
def test_what_cannot_be_is_refused_in_the_configuration_cell(
    notebook, old, new, message, monkeypatch
):
    with pytest.raises(ValueError, match=message) as caught:
        configure(notebook, monkeypatch, old, new)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_what_can_be_is_not_refused(notebook, monkeypatch):
    configure(notebook, monkeypatch, "preset =", "preset =")


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_papermill_s_parameters_count(notebook, monkeypatch):
    """It adds a cell that sets them, behind the one with the tag `parameters`."""
    cells = nbformat.read(NOTEBOOKS[notebook], 4).cells
    cells = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert [cells[i].id for i in tagged] == ["config"]
    names = configure(notebook, monkeypatch, "preset =", "preset =")
    uses = (cell.source for cell in cells[tagged[0] + 1 :] if "config" in cell.source)
    again = "".join(next(uses).splitlines(keepends=True)[:2])  # Before anything else is done.
    exec('preset = "laptop"\n' + again, names)
    assert names["config"] is names["presets"]["laptop"]
    names["config"] = own = {"size": 8}  # What a reader, or a benchmark, has put there stays.
    exec(again, names)
    assert names["config"] is own
    names["config"] = names["presets"]["quick"]
    with pytest.raises(ValueError, match="preset must be"):
        exec('preset = "fast"\n' + again, names)


def test_a_batch_of_one_can_grow(monkeypatch):
    source = code_cells(NOTEBOOKS["01"])["config"]
    monkeypatch.setenv("NCA_REGIME", "growing")
    exec(HEAD + re.sub("batch_size=.", "batch_size=1", source), {})


def test_unusual_settings_reach_the_end(tmp_path):
    """A grid beyond what a page and a video show, few channels, a picture from a long address."""
    name = "%C3%A9" * 99 + ".png"
    address = f"file://{tmp_path}/a%20b%20{name[:120]}.png?token=secret/{'0' * 300}"
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"a b {'é' * 20}.png")
    path = NOTEBOOKS["01"]
    notebook = nbformat.read(path, 4)
    edits = {
        "config": ('picture = ""', f'picture = "{address}"'),
        "state": ("channels=16", "channels=8"),
    }
    sources = code_cells(path, **edits)
    sources["config"] = sources["config"].replace("size=8, padding=2", "size=2, padding=144")
    for cell in notebook.cells:
        cell.source = sources.get(cell.id, "" if cell.id in SHOWN else cell.source)
    from execute_notebook import execute

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCA_PRESET", "quick")
        execute(notebook, tmp_path / "executed.ipynb", tmp_path)
    name = f"a_b_{'é' * 20}"
    kept = sorted(file.name for file in (tmp_path / "out").glob("*.*"))
    assert kept == [f"{name}.gif", f"{name}.html", f"{name}.npz"]
    meta = nca_helpers.load_meta(tmp_path / "out" / f"{name}.npz")
    assert (meta["emoji"], meta["channels"], meta["padding"]) == (name, 8, 144)
    assert "log10_loss" in meta


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a picture and a run of four train steps towards it."""
    folder = tmp_path_factory.mktemp("run")
    Image.new("RGB", (8, 8), "red").save(folder / "photo.png")
    start(folder, {})
    return folder


def start(folder, edits, train_steps=4):
    """Runs notebook 01 through its loop, in a fresh kernel, and returns what the last cells say."""
    edits = {"config": ('picture = ""', 'picture = "photo.png"')} | edits
    cells = code_cells(NOTEBOOKS["01"], **edits)
    cells["config"] = cells["config"].replace("train_steps=4,", f"train_steps={train_steps},")
    reader = Reader(folder, preset="quick")
    try:
        reader.run_cells({**cells, "continue": ""})
        return reader.run(cells["continue"]) + reader.run(cells["loop"])
    finally:
        reader.close()


RESUME = {"continue": ("resume = False", "resume = True")}


def test_the_weights_are_kept_before_anything_is_shown(trained):
    meta = nca_helpers.load_meta(trained / "out" / "photo.npz")
    assert meta["train_steps"] == 4 and meta["emoji"] == "photo" and "log10_loss" not in meta


def test_more_train_steps_go_on_with_the_new_schedule(trained):
    said = start(trained, RESUME, train_steps=7)
    assert "The run was begun for 4 train steps: from here on the learning rate" in said
    assert "schedule for 7." in said and "begins after step 4 of 7" in said and "step 7/7" in said
    with pytest.raises(AssertionError, match="train_steps must be at least the 7 done, got 5"):
        start(trained, RESUME, train_steps=5)


def test_another_picture_of_the_same_name_does_not_go_on(trained):
    weights = nca_helpers.load_nca(trained / "out" / "photo.npz")
    Image.new("RGB", (8, 8), "blue").save(trained / "photo.png")
    with pytest.raises(AssertionError, match="holds another run: target_checksum is"):
        start(trained, RESUME)
    again = nca_helpers.load_nca(trained / "out" / "photo.npz")
    np.testing.assert_array_equal(weights.update.kernel[...], again.update.kernel[...])


@pytest.fixture(scope="module")
def names():
    """What notebook 01 defines up to its train step, at `quick`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCA_PRESET", "quick")
        patch.setenv("NCA_REGIME", "persistent")
        # The mesh that its first cell puts in force would stay for the other tests.
        patch.setattr("jax.set_mesh", lambda mesh: None)
        patch.setattr(nca_helpers, "use_every_core", lambda: None)
        jax.config.update("jax_disable_most_optimizations", True)  # Compiles in half the time.
        yield run_cells(NOTEBOOKS["01"].name, "train-step", {}, SHOWN)
        jax.config.update("jax_disable_most_optimizations", False)


def test_what_is_changed_between_two_runs_of_the_loop_counts(names):
    """A jitted function keeps the global variables of its first call."""
    batch = np.stack(2 * [np.asarray(names["first"])])
    batch[:, :4, :4, :4] = 1  # Not what a seed looks like.
    step, target, key = names["train_step"], names["target"], jax.random.key(0)

    def run(target=target, regime="persistent"):
        nca = nnx.clone(names["nca"])
        optimizer = nnx.Optimizer(nca, names["adam"], wrt=nnx.Param)
        loss, _, before, _ = step(nca, optimizer, batch, key, target, regime, names["wound"])
        return float(loss), np.asarray(before)

    loss, before = run()
    seeds = np.stack(2 * [np.asarray(names["first"])])
    np.testing.assert_array_equal(before, np.stack([seeds[0], batch[1]]))
    assert run(target=target[::-1])[0] != loss
    np.testing.assert_array_equal(run(regime="growing")[1], seeds)


def test_what_knows_no_rule_but_the_automaton_s_own_is_left_out(names, tmp_path, capsys):
    sources = code_cells(NOTEBOOKS["01"])
    own = "\n".join(line.replace("    # ", "    ", 1) for line in sources["my-rule"].splitlines())
    assert own != sources["my-rule"]
    given = names | {"out": tmp_path, "name": "fox", "about": {}, "log10_loss": {2: -3.0}}
    for source in (own, sources["model"]):
        exec(source, given)
    assert "a rule of your own" in capsys.readouterr().out
    exec(sources["own-rule"], given)
    exec(sources["play"], given)
    exec('unless_own(nca_helpers.save_nca, out / "fox.npz", nca)', given)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(line.startswith("Left out: ") for line in said)
    assert not list(tmp_path.iterdir())
    given["nca"] = names["nca"]
    with pytest.raises(ValueError, match="size"):
        exec("unless_own(nca_helpers.show_player, nca, size=7)", given)
