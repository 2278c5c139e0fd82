"""What a GPU or TPU makes of it, in one command of at most nine minutes.

    make accelerator PYTHON=python3             with a JAX that sees the accelerator; no network
    python benchmarks/accelerator.py a f        some parts
    python benchmarks/accelerator.py --tiny     on any machine, to see that it runs

Parts:
    a: a train step of CAX's notebook: this project's, CAX's and PyTorch's, time and memory.
    b: a generation of the EvoJAX notebook's problem, at growing populations.
    e: the roofline of a rollout: a model's seconds and the measured ones.
    f: which formulation of a rollout and of its gradient is fastest.
    c: notebook 01 at `paper`, until the loss that CAX publishes, with its curve.
    d: the 40-pixel problem of `experiments/evolve_pictures.py`, until CAX publishes no less.

Each piece of work has a process of its own and a budget of seconds, which grows by what those
before it have left. Each row is written as soon as it is there; a second call goes on with what is
not done. Rows go to benchmarks/accelerator.json. Packages that are missing are taken from wheels/;
benchmarks/wheels.txt says how they get there.
"""

import argparse
import datetime
import importlib.util
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "accelerator"
sys.path[:0] = map(str, (ROOT, ROOT / "benchmarks", ROOT / "experiments"))
sys.path.append(str(OUT / "packages"))

SECONDS = 540
WANTED_LOG10_LOSS = -3.96  # CAX: 398 s on an H100 (its rl/notes/baseline.md).
WANTED_SHARE = 0.111  # CAX: 108 minutes on an H100, as a share of an empty grid's loss.
POPULATIONS = (128, 1_024, 8_192, 65_536)

Rows = Iterator[dict[str, Any]]


class Work(NamedTuple):
    """A piece of work: `rows(tiny, deadline)` yields what it has measured."""

    rows: Callable[[bool, float], Rows]
    seconds: int
    needs: str = "jax"


def problem(tiny: bool, padding: int, **sizes: Any) -> dict[str, Any]:
    """Returns what `here` and the other contestants take: 🦎 of 40 pixels, from seeds."""
    import numpy as np

    from nca_helpers import load_emoji, pretrained, seed_state
    from nca_helpers.model import weights_of

    target = np.asarray(load_emoji("🦎", *((10, 1) if tiny else (40, padding))))
    first = np.asarray(seed_state(*target.shape[:2]))
    weights = weights_of(pretrained("🦎", "regenerating"))
    given = dict(target=target, first=first, states=np.stack([first] * (4 if tiny else 64)))
    return weights | given | {name: np.asarray(value) for name, value in sizes.items()}


def contestant(name: str) -> Any:
    """Imports a contestant of `make bench`, and has it choose its variant."""
    name, _, variant = name.partition(":")
    module = importlib.import_module(name)
    if variant:
        module.choose(variant)
    return module


def timed(work: Callable[[], Any], deadline: float) -> float:
    """Returns the median seconds of a few calls, after two that compile."""
    work()
    work()
    seconds = []
    while not seconds or (sum(seconds) < 2 and len(seconds) < 9 and time.monotonic() < deadline):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def memory() -> float | None:
    """Returns the most memory of the accelerator that this process has used, in GB."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import jax

    return ((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9) or None


def train_step(name: str, tiny: bool, deadline: float) -> Rows:
    """Part a. A train step takes 65 to 128 steps, and everybody computes all 128."""
    if name.startswith("with_torch") and not tiny:
        import torch

        assert torch.cuda.is_available(), "PyTorch sees no GPU"
    lengths, batch_size = ((2, 3), 2) if tiny else ((65, 128), 8)
    work = contestant(name).train(problem(tiny, 16, lengths=lengths, batch_size=batch_size))
    yield {"train_step_seconds": timed(work, deadline), "memory_gb": memory()}


def generation(name: str, tiny: bool, deadline: float) -> Rows:
    """Part b."""
    seconds, before = 0.0, 1
    for size in (8,) if tiny else POPULATIONS:
        if time.monotonic() + 3 * seconds * size / before > deadline:
            yield {"population": size, "skipped": f"{seconds * size / before:.0f} s each, maybe"}
            return
        loss_steps = (1, 2, 3) if tiny else (30, 60, 90)
        given = problem(tiny, 4, population_size=size, loss_steps=loss_steps)
        seconds, before = timed(contestant(name).generation(given), deadline), size
        yield {"population": size, "generation_seconds": seconds, "memory_gb": memory()}


def notebook_01(tiny: bool, deadline: float) -> Rows:
    """Part c: the notebook's own cells, with a loop that stops where the loss is reached."""
    import here  # It sets the preset.
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nca_helpers import rollout

    started = time.perf_counter()
    small = dict(size=8, padding=2, batch_size=2, pool_size=4, steps=(2, 3), train_steps=2)

    def set_config(names):
        names["config"] |= small if tiny else {}

    names = here.run_cells(
        "01_growing_with_gradients.ipynb", "train-step", {"config": set_config}, here.SHOWN
    )
    config, pool, losses = names["config"], names["pool"], []
    for step in range(config["train_steps"]):
        chosen = np.random.default_rng((0, step)).choice(
            len(pool), config["batch_size"], replace=False
        )
        key = jax.random.fold_in(jax.random.key(0), step)
        task = [names[name] for name in ("target", "regime", "wound")]
        loss, _, _, pool[chosen] = names["train_step"](
            names["nca"], names["optimizer"], pool[chosen], key, *task
        )
        losses.append(float(loss))
        log10_loss = float(np.log10(np.mean(losses[-128:])))
        is_over = step + 1 == config["train_steps"] or time.monotonic() > deadline
        is_over |= step >= 127 and log10_loss <= WANTED_LOG10_LOSS
        if (step + 1) % 128 == 0 or is_over:
            seconds = time.perf_counter() - started
            yield {"train_steps": step + 1, "seconds": seconds, "log10_batch_loss": log10_loss}
        if is_over:
            break
    seeds = jnp.stack([names["first"]] * 16)
    states = rollout(names["nca"], seeds, jax.random.key(1_000_000), 2 * config["steps"][1])
    log10_loss = float(jnp.log10(names["pixel_loss"](states, names["target"]).mean()))
    yield {"train_steps": step + 1, "held_out_log10_loss": log10_loss}


def pictures(tiny: bool, deadline: float) -> Rows:
    """Part d: a smaller 🦎 first, as the experiment does."""
    import evolve_pictures
    from flax import nnx

    import nca_helpers

    nca_helpers.use_every_core()
    stages = evolve_pictures.PROBLEMS["40"]
    if tiny:
        stages = [evolve_pictures.Stage(6, 1, (1, 2), 10)]
    nca = nca_helpers.NCA(hidden=2 if tiny else 24, rngs=nnx.Rngs(0))
    spent = {"generation": 0, "candidates": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    started = time.perf_counter()
    for stage in stages:
        for evolved, row, _ in evolve_pictures.evolve(nca, stage, 0, spent):
            nca = evolved
            yield row | {"wall_seconds": time.perf_counter() - started}
            is_reached = stage is stages[-1] and float(row["share"]) <= WANTED_SHARE
            if is_reached or time.monotonic() > deadline:
                return


def roofline(tiny: bool, deadline: float) -> Rows:
    """Part e: of a step, the compiler counts what is computed and moved."""
    import jax
    import jax.numpy as jnp

    from nca_helpers import pretrained, rollout

    def best_of(work, *arrays):
        seconds = []
        for _ in range(8):
            start = time.perf_counter()
            jax.block_until_ready(work(*arrays))
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    side, numbers = (128, 2**16) if tiny else (8_192, 2**28)
    matrix, array = jnp.ones((side, side)), jnp.ones(numbers)
    peak = 2 * side**3 / best_of(jax.jit(jnp.matmul), matrix, matrix)
    bandwidth = 2 * array.nbytes / best_of(jax.jit(jnp.negative), array)
    yield {"flops_a_second": peak, "bytes_a_second": bandwidth}
    del matrix, array
    nca = pretrained("🦎", "regenerating")
    num_steps = 4 if tiny else 90
    for batch in (1, 2) if tiny else (1, 16, 256, 4_096):
        states = jax.random.uniform(jax.random.key(0), (batch, *((12,) if tiny else (48,)) * 2, 16))
        step = jax.jit(nca.__call__).lower(states, jax.random.key(1))
        operations = step.cost_analysis()["flops"]
        moved = step.compile().cost_analysis()["bytes accessed"]
        least = max(operations / peak, moved / bandwidth)
        run = partial(rollout, nca, states, jax.random.key(1), num_steps)
        seconds = timed(lambda run=run: run().block_until_ready(), deadline) / num_steps
        yield {
            "batch": batch,
            "flops": operations,
            "bytes": moved,
            "model_step_seconds": least,
            "step_seconds": seconds,
            "measured_over_model": seconds / least,
            "bound_by": "products" if operations / peak == least else "memory",
        }


def formulation(name: str, tiny: bool, deadline: float) -> Rows:
    """Part f: a rollout of a batch of 8 at 72², and where there is one its gradient."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from pallas_rollout import pallas_rollout

    import nca_helpers
    from nca_helpers.rollout_cpu import rollout_cpu

    size, batch, num_steps = (12, 2, 4) if tiny else (72, 8, 96)
    nca, key = nca_helpers.pretrained("🦎", "regenerating"), jax.random.key(0)
    states = jnp.stack([nca_helpers.seed_state(size, size)] * batch)
    graph, weights = nnx.split(nca)

    def scan(weights):
        def advance(state, t):
            return nnx.merge(graph, weights)(state, jax.random.fold_in(key, t)), None

        return jax.lax.scan(advance, states, jnp.arange(num_steps))[0]

    def again(weights):
        return nca_helpers.rollout(nnx.merge(graph, weights), states, key, num_steps)

    def replay(weights):
        lengths, settings = jnp.full(batch, num_steps), {"fire_rate": jnp.float32(0.5)}
        return rollout_cpu(graph, num_steps, None, weights, states, key, lengths, settings)

    def pallas(weights):
        shape = (batch, num_steps, size, size)
        fire = jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)
        is_cpu = jax.default_backend() == "cpu"
        return pallas_rollout(nnx.merge(graph, weights), states, fire, interpret=is_cpu)

    run = {"scan": scan, "computed again": again, "replay": replay, "Pallas": pallas}[name]
    forwards = run if run is again else jax.jit(run)  # It compiles by itself.
    seconds = timed(lambda: forwards(weights).block_until_ready(), deadline)
    yield {"rollout_step_seconds": seconds / num_steps}
    if name != "Pallas":
        gradient = jax.jit(jax.grad(lambda weights: jnp.square(run(weights)[..., :4]).mean()))
        seconds = timed(lambda: jax.block_until_ready(gradient(weights)), deadline)
        yield {"gradient_step_seconds": seconds / num_steps, "memory_gb": memory()}


PARTS: dict[str, dict[str, Work]] = {
    "a": {
        "this project": Work(partial(train_step, "here"), 30),
        "CAX": Work(partial(train_step, "with_cax"), 35, "cax"),
        "CAX, remat": Work(partial(train_step, "with_cax:remat"), 35, "cax"),
        "PyTorch, compiled": Work(partial(train_step, "with_torch:compiled"), 45, "torch"),
    },
    "b": {
        "this project": Work(partial(generation, "here"), 45),
        "EvoJAX notebook": Work(partial(generation, "with_evojax"), 40, "evojax"),
        "evosax Open-ES": Work(partial(generation, "with_evosax:Open_ES"), 20, "evosax"),
        "evosax PGPE": Work(partial(generation, "with_evosax:PGPE"), 20, "evosax"),
    },
    "e": {"roofline": Work(roofline, 25)},
    "f": {
        name: Work(partial(formulation, name), 20)
        for name in ("scan", "computed again", "replay", "Pallas")
    },
    "c": {"notebook 01": Work(notebook_01, 95)},
    "d": {"pictures": Work(pictures, 65)},
}


def child(part: str, name: str, tiny: bool, seconds: float) -> None:
    """Does one piece of work and prints its rows, as JSON, a line each."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for row in PARTS[part][name].rows(tiny, time.monotonic() + seconds):
        print(json.dumps(row), file=answers, flush=True)


def run(part: str, name: str, tiny: bool, seconds: float) -> Rows:
    """Yields the rows of a piece of work, and last `{"status": how it ended}`."""
    needs = PARTS[part][name].needs
    if importlib.util.find_spec(needs) is None:
        yield {"status": f"not done: {needs} is not installed, and no wheel of it in wheels/"}
        return
    end = time.monotonic() + seconds
    # A tenth less, so that it ends by itself.
    command = [sys.executable, __file__, part, "--work", name, "--seconds", str(0.9 * seconds)]
    process = subprocess.Popen(
        command + ["--tiny"] * tiny,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        # Beside PyTorch JAX has nothing to do there, and would take most of the memory.
        env=os.environ | ({"JAX_PLATFORMS": "cpu"} if needs == "torch" else {}),
    )
    lines: queue.Queue = queue.Queue()
    errors: list[str] = []

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    listener = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    listener.start()
    status = f"stopped after {seconds:.0f} s"
    try:
        while line := lines.get(timeout=max(0.0, end - time.monotonic())):
            yield json.loads(line)
        code = process.wait(timeout=10)
        listener.join()
        said = [line.strip() for line in errors if line.strip()]
        status = f"failed: {said[-1][:300] if said else code}" if code else "done"
    except (queue.Empty, subprocess.TimeoutExpired):
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # PyTorch's compiler has processes too.
            process.wait()
    yield {"status": status}


def find_device() -> tuple[str, str]:
    """Asks JAX, in a process that then gives the accelerator back, for platform and name."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if found.returncode:
        return "no JAX", (found.stderr.strip().splitlines() or ["?"])[-1]
    platform, _, kind = found.stdout.strip().splitlines()[-1].partition("|")
    return platform, kind


def install_wheels() -> None:
    """Unpacks from wheels/ what is not installed; benchmarks/wheels.txt says how they get there."""
    installed = {found.name.lower().replace("-", "_") for found in distributions()}
    for wheel in sorted((ROOT / "wheels").glob("*.whl")):
        if wheel.name.split("-")[0].lower() not in installed:
            zipfile.ZipFile(wheel).extractall(OUT / "packages")
    importlib.invalidate_caches()


def versions() -> str:
    found = []
    for package in ("jax", "flax", "cax", "torch", "evojax", "evosax"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def table(results: dict[str, Any]) -> str:
    """Returns the rows as Markdown; of a curve the last ones."""
    lines = ["| part | work | what | status |", "|---|---|---|---|"]
    for part, works in results.items():
        for name, entry in works.items():
            for row in entry["rows"][-5:] or [{}]:
                told = (
                    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                )
                lines.append(f"| {part} | {name} | {', '.join(told)} | {entry['status']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all if none")
    parser.add_argument("--tiny", action="store_true", help="at a tiny size, on any machine")
    parser.add_argument("--out", type=Path, help="where the rows go")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=f"for all together, {SECONDS} if not given")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    if options.work:
        child(*options.parts, options.work, options.tiny, options.seconds)
        return

    started = time.monotonic()
    # A CPU compiles slowly, and may have other work.
    end = started + (options.seconds or (4 if options.tiny else 1) * SECONDS)
    stretch = (end - started) / SECONDS
    install_wheels()
    platform, kind = find_device()
    if platform in ("cpu", "no JAX") and not (options.tiny and platform == "cpu"):
        sys.exit(
            "This needs a GPU or a TPU that JAX sees. "
            f"{sys.executable} sees: {platform} ({kind}).\n"
            "Another Python: make accelerator PYTHON=...\n"
            "Tried on a CPU, at a tiny size: .venv/bin/python benchmarks/accelerator.py --tiny"
        )
    from nca_helpers.files import replace_file

    path = options.out or (
        OUT / "tiny.json" if options.tiny else ROOT / "benchmarks/accelerator.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = everything.setdefault(kind, {})
    todo = [
        (part, name)
        for part, works in PARTS.items()
        for name in works
        if part in (options.parts or PARTS)
        and results.get(part, {}).get(name, {}).get("status") != "done"
    ]
    for i, (part, name) in enumerate(todo):
        budget = stretch * PARTS[part][name].seconds
        later = stretch * sum(PARTS[part][name].seconds for part, name in todo[i + 1 :])
        left = end - time.monotonic()
        if left < budget / 2:
            print(f"{part} {name}: no time left; the next call goes on here", flush=True)
            break
        seconds = min(left, max(left - later, budget / 2))
        print(f"{part} {name}: at most {seconds:.0f} s", flush=True)
        entry = {"status": "begun", "date": datetime.date.today().isoformat(), "rows": []}
        entry["versions"] = versions()
        results.setdefault(part, {})[name] = entry
        for row in run(part, name, options.tiny, seconds):
            print("   ", row, flush=True)
            entry.update(row) if "status" in row else entry["rows"].append(row)
            replace_file(
                path, (json.dumps(everything, indent=1, ensure_ascii=False) + "\n").encode()
            )
    print(f"\n{kind}, {time.monotonic() - started:.0f} s; {path}\n\n{table(results)}")


if __name__ == "__main__":
    main()
