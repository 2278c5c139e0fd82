"""The same work done by this project and by what people would use instead, side by side.

    make bench                                   all of it
    python benchmarks/speed.py train_alive       one workload; its rows replace those there

Each contestant does its work in a process of its own, warmed up, one after the other, round after
round; a row is the median of the rounds. Before that all must come to the same states and
gradients from the same weights and masks. Prints a table; writes benchmarks/speed.json, speed.png.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from here import masks

from nca_helpers import NCA, load_emoji, pretrained, rollout, seed_state
from nca_helpers.files import replace_file
from nca_helpers.model import weights_of

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "speed.json"
FIGURE = FOLDER / "speed.png"

PACKAGES = ("jax", "flax", "cax", "evojax", "evosax", "torch", "numpy")
CHECK_STEPS = 8
ROUNDS, RACES = 5, 1

EVOSAX = ("with_evosax:Open_ES", "with_evosax:PGPE")

# name: (title, task, contestants, CA steps of one repeat, rounds)
WORKLOADS = {
    "train_alive": (
        "train step, every cell alive",
        "train",
        ("here", "with_torch", "with_cax", "with_cax:remat", "floor"),
        16,
        ROUNDS,
    ),
    "train_grown": (
        "train step, grown lizards",
        "train",
        ("here", "with_torch", "with_cax", "with_cax:remat", "floor"),
        16,
        ROUNDS,
    ),
    "train_full": (
        "train step of full length, grown lizards",
        "train",
        ("here", "with_torch", "with_cax", "with_cax:remat"),
        128,
        1,
    ),
    "generation_alive_16": (
        "16 candidates, every cell alive",
        "generation",
        ("here", "with_evojax", "with_cax", *EVOSAX, "floor"),
        90,
        ROUNDS,
    ),
    "generation_seed_16": (
        "16 candidates, from a seed",
        "generation",
        ("here", "with_evojax", "with_cax", *EVOSAX, "floor"),
        90,
        ROUNDS,
    ),
    "generation_alive_128": (
        "128 candidates, every cell alive",
        "generation",
        ("here", "with_evojax", *EVOSAX, "floor"),
        90,
        ROUNDS,
    ),
    "generation_seed_128": (
        "128 candidates, from a seed",
        "generation",
        ("here", "with_evojax", *EVOSAX, "floor"),
        90,
        ROUNDS,
    ),
    "member_alive": (
        "128 small candidates, every cell alive",
        "generation",
        ("here", "here:general", "with_evojax"),
        40,
        ROUNDS,
    ),
    "member_seed": (
        "128 small candidates, from a seed",
        "generation",
        ("here", "here:general", "with_evojax"),
        40,
        ROUNDS,
    ),
    "inference_one": (
        "inference, one lizard, 72²",
        "inference",
        ("here", "with_torch", "with_cax"),
        128,
        ROUNDS,
    ),
    "inference_many": (
        "inference, 49 lizards, 512²",
        "inference",
        ("here", "with_torch", "with_cax"),
        16,
        ROUNDS,
    ),
}
NAMES = {
    "here": "this project",
    "with_torch": "PyTorch",
    "with_cax": "CAX",
    "with_cax:remat": "CAX, remat",
    "with_evojax": "EvoJAX notebook",
    "with_evosax:Open_ES": "evosax Open-ES, this rollout",
    "with_evosax:PGPE": "evosax PGPE, this rollout",
    "here:general": "this project, channels last",
    "floor": "matrix products alone",
}
COLOURS = {
    "here": "tab:purple",
    "with_torch": "tab:orange",
    "with_cax": "tab:blue",
    "with_cax:remat": "navy",
    "with_evojax": "tab:cyan",
    "with_evosax:Open_ES": "tab:green",
    "with_evosax:PGPE": "tab:olive",
    "here:general": "tab:pink",
    "floor": "tab:gray",
}


def problem(name: str) -> dict[str, Any]:
    """Returns the weights and states that all contestants get."""
    *_, num_steps, _ = WORKLOADS[name]
    # Notebook 01 at `paper`, notebook 02 at `paper`, and at `laptop`.
    size, padding, loss_steps, regime = 40, 16, (), "regenerating"
    if name.startswith("generation"):
        padding, loss_steps = 4, (30, 60, 90)
    if name.startswith("member"):
        size, padding, loss_steps, regime = 16, 2, (20, 30, 40), "evolved"
    target = load_emoji("🦎", size, padding)
    side = len(target)
    lizard = pretrained("🦎", regime)
    weights = weights_of(lizard)
    first = seed_state(side, side)
    seeds = jnp.broadcast_to(first, (16, *first.shape))
    states = rollout(lizard, seeds, jax.random.key(1), np.arange(120, 184, 4))
    if "alive" in name:
        # Weights that keep alive what is, whatever the masks.
        weights["update/kernel"] = 1e-3 * weights["update/kernel"]
        weights["update/bias"] = 0 * weights["update/bias"]
        states = jax.random.uniform(jax.random.key(2), states.shape, minval=0.5)
        first = states[0]
    if name == "inference_one":
        states = states[:1]
    if name == "inference_many":
        rows = states[np.arange(49) % 16].reshape(7, 7, side, side, 16).swapaxes(1, 2)
        states = jnp.pad(rows.reshape(1, 7 * side, 7 * side, 16), ((0, 0), (4, 4), (4, 4), (0, 0)))
        target = jnp.zeros((*states.shape[1:3], 4))  # Only for the check.
    # A train step of full length ends after a random 65 to 128 steps, as in CAX's notebook.
    lengths = (65, 128) if name == "train_full" else (num_steps, num_steps)
    arrays = dict(
        states=states,
        first=first,
        target=target,
        lengths=lengths,
        batch_size=8,
        num_steps=num_steps,
        loss_steps=loss_steps,
        population_size=16 if name.endswith("16") else 128,
    )
    return weights | {key: np.asarray(array) for key, array in arrays.items()}


def has_remat() -> bool:
    """Returns whether CAX has it, since 0.4."""
    return not version("cax").startswith("0.3.")


class Contestant:
    """A worker process."""

    def __init__(self, name: str, task: str, path: Path):
        """Starts it."""
        command = [sys.executable, FOLDER / "worker.py", name, task, path]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, command: str) -> dict[str, float]:
        """Sends a command and returns the answer."""
        print(command, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()} at {command!r}")
        return json.loads(line)


def check(contestants: list[Contestant], given: dict[str, Any], folder: Path) -> float:
    """Returns the largest difference between contestants, as a share of the largest number.

    Raises:
        AssertionError: They do not agree.
    """
    found = {}
    for contestant in contestants:
        contestant.tell(f"check {folder / contestant.name}.npz")
        with np.load(folder / f"{contestant.name}.npz") as file:
            found[contestant.name] = dict(file)
    assert np.abs(found["here"]["states"] - given["states"]).max() > 1e-4, "nothing has happened"
    worst = 0.0
    for name, arrays in found.items():
        for key, array in arrays.items():
            ours = found["here"][key]
            difference = float(np.abs(array - ours).max() / np.abs(ours).max())
            assert difference < 1e-4, f"{name} has other {key}: {difference:.1e}"
            worst = max(worst, difference)
    return worst


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Runs one workload and returns its entry in the results."""
    title, task, names, num_steps, rounds = WORKLOADS[name]
    names = [rival for rival in names if has_remat() or rival != "with_cax:remat"]
    given = problem(name)
    path, few = folder / f"{name}.npz", folder / f"{name}_check.npz"
    np.savez(path, **given)
    states = given["first"][None] if task == "generation" else given["states"][:2]
    given |= {"states": states, "masks": masks(CHECK_STEPS, states.shape[:3])}
    np.savez(few, **given)

    rivals = [rival for rival in names if rival != "floor"]
    difference = check([Contestant(rival, task, few) for rival in rivals], given, folder)

    contestants = [Contestant(rival, task, path) for rival in names]
    first_memory, memory = {}, {}
    for contestant in contestants:
        # JAX compiles twice: for arrays as they are made, and as they come back from a device each.
        for _ in range(1 if contestant.name.startswith("with_cax") else 2):
            contestant.tell("run")
        first_memory[contestant.name] = contestant.tell("settle")["memory"]
        contestant.tell("run")
    seconds: dict[str, list[float]] = {rival: [] for rival in names}
    for _ in range(rounds):
        for contestant in contestants:
            seconds[contestant.name].append(contestant.tell("run")["seconds"])
    for contestant in contestants:
        memory[contestant.name] = contestant.tell("memory")["memory"]
        contestant.process.terminate()
    return {
        "title": title,
        "steps": num_steps,
        "check": difference,
        "contestants": {
            rival: {
                "milliseconds": 1e3 * median(seconds[rival]) / num_steps,
                "all_milliseconds": [1e3 * s / num_steps for s in seconds[rival]],
                "memory_gb": memory[rival],
                "memory_with_compiling_gb": first_memory[rival],
                "ratio": median(seconds[rival]) / median(seconds["here"]),
            }
            for rival in names
        },
    }


def race(folder: Path) -> dict[str, Any]:
    """Measures the time from a command to a lizard, whose loss is 1e-3, on the small grid."""
    nca, target, first = NCA(rngs=nnx.Rngs(0)), load_emoji("🦎", 24, 4), seed_state(32, 32)
    arrays = dict(
        first=first,
        target=target,
        lengths=(32, 48),
        batch_size=4,
        states=jnp.broadcast_to(first, (256, *first.shape)),
    )
    path = folder / "race.npz"
    np.savez(path, **weights_of(nca), **arrays)
    seconds: dict[str, list[float]] = {"here": [], "with_torch": []}
    steps: dict[str, list[int]] = {"here": [], "with_torch": []}
    for _ in range(RACES):
        for rival in seconds:
            start = time.perf_counter()
            contestant = Contestant(rival, "race", path)
            steps[rival].append(contestant.tell("race")["steps"])
            seconds[rival].append(time.perf_counter() - start)
            contestant.process.terminate()
    contestant = Contestant("with_cax", "train", path)
    step = median([contestant.tell("run")["seconds"] for _ in range(4)][1:])
    contestant.process.terminate()
    seconds["with_cax"] = [median(steps["here"]) * step]
    return {
        "title": "from the command to log10 −3.0",
        "contestants": {
            rival: {
                "seconds": median(found),
                "all_seconds": found,
                "train_steps": steps.get(rival),
                "ratio": median(found) / median(seconds["here"]),
            }
            for rival, found in seconds.items()
        },
        "note": "CAX is computed: its seconds a train step, times the train steps of this project",
    }


def machine(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Returns what the numbers depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if "model name" in line]
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{os.cpu_count()} cores, {models[0] if models else platform.processor()}",
        "accelerator": "none" if device.platform == "cpu" else device.device_kind,
        "python": platform.python_version(),
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
    }


def table(workloads: dict[str, Any]) -> str:
    """Returns the results as Markdown: how many times longer than this project each one takes."""
    lines = [
        "| work | by | ms a CA step (from, to) | ratio | memory, GB |",
        "|---|---|---|---|---|",
    ]
    for entry in workloads.values():
        for rival, row in entry["contestants"].items():
            if "seconds" in row:
                spread = row["all_seconds"]
                times = f"{row['seconds']:.0f} s ({min(spread):.0f}, {max(spread):.0f}) in all"
                memory = ""
            else:
                spread = row["all_milliseconds"]
                times = f"{row['milliseconds']:.2f} ({min(spread):.2f}, {max(spread):.2f})"
                memory = f"{row['memory_gb']:.2f}"
            ratio = f"{row['ratio']:.2g}" if row["ratio"] < 10 else f"{row['ratio']:.0f}"
            lines.append(f"| {entry['title']} | {NAMES[rival]} | {times} | {ratio} | {memory} |")
    return "\n".join(lines)


def draw(workloads: dict[str, Any], path: Path) -> None:
    """Draws how many times longer than this project each one takes."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for row, entry in enumerate(workloads.values()):
        contestants = entry["contestants"]
        for rival, numbers in contestants.items():
            unit = "seconds" if "seconds" in numbers else "milliseconds"
            ratios = np.array(numbers[f"all_{unit}"]) / contestants["here"][unit]
            axes.plot(ratios, np.full(len(ratios), row), "|", color=COLOURS[rival], ms=9)
            axes.plot(numbers["ratio"], row, "o", color=COLOURS[rival])
    for rival, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=NAMES[rival])
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    axes.set(xscale="log", xlabel="time, in times of this project's")
    axes.set_yticks(range(len(workloads)), [entry["title"] for entry in workloads.values()])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    known = [*WORKLOADS, "race"]
    chosen = sys.argv[1:] or known
    if unknown := set(chosen) - set(known):
        sys.exit(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    if not has_remat():
        print(f"CAX {version('cax')}, without remat: CAX 0.4.4 needs Python 3.12 or newer.")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    device = jax.devices()[0]
    workloads = results.setdefault(device.device_kind, {})
    for name in chosen:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found = race(Path(folder)) if name == "race" else measure(name, Path(folder))
        workloads[name] = found | {"machine": machine()}
        results[device.device_kind] = workloads = {n: workloads[n] for n in known if n in workloads}
        replace_file(RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    print(table(workloads))
    draw(workloads, FIGURE.with_stem("speed" if device.platform == "cpu" else "speed_accelerator"))


if __name__ == "__main__":
    main()
