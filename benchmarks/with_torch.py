"""The work in PyTorch as people write it: a depthwise convolution, two 1×1 convolutions, a loop.

Channels first in memory format `channels_last`, the faster of the two on a CPU here.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
IDENTITY = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
FILTERS = torch.stack([IDENTITY, SOBEL, SOBEL.T]).repeat(16, 1, 1)[:, None].to(DEVICE)

compiled = False


def choose(variant: str) -> None:
    """Chooses `compiled`: a step goes through `torch.compile`."""
    global compiled
    assert variant == "compiled"
    compiled = True


# A depthwise convolution puts the three features of a channel side by side.
FEATURES = np.array([16 * block + channel for channel in range(16) for block in range(3)])


class GrowingNCA(torch.nn.Module):
    """The cell."""

    def __init__(self, weights: dict):
        """Takes over weights in the layout of this project's checkpoints."""
        super().__init__()
        self.hidden, self.update = torch.nn.Conv2d(48, 128, 1), torch.nn.Conv2d(128, 16, 1)
        with torch.no_grad():
            self.hidden.weight[:, :, 0, 0] = torch.tensor(weights["hidden/kernel"][FEATURES].T)
            self.hidden.bias[:] = torch.tensor(weights["hidden/bias"])
            self.update.weight[:, :, 0, 0] = torch.tensor(weights["update/kernel"].T)
            self.update.bias[:] = torch.tensor(weights["update/bias"])
        self.to(DEVICE)

    def forward(self, state, fire=None):
        """Takes a step; `fire`, of (batch, 1, height, width), is drawn if not given."""
        if fire is None:
            fire = torch.rand_like(state[:, :1]) < 0.5
        before = living_mask(state)
        seen = F.conv2d(state, FILTERS, padding=1, groups=16)
        state = state + self.update(torch.relu(self.hidden(seen))) * fire
        return state * (before & living_mask(state))


def living_mask(state):
    return F.max_pool2d(state[:, 3:4], 3, stride=1, padding=1) > 0.1


def to_torch(states: np.ndarray) -> torch.Tensor:
    """Returns (..., height, width, channels) as (..., channels, height, width)."""
    return torch.tensor(states, device=DEVICE).movedim(-1, -3)


def to_numpy(states: torch.Tensor) -> np.ndarray:
    return states.detach().movedim(-3, -1).cpu().numpy()


def check(problem: dict) -> dict[str, np.ndarray]:
    """Returns the states after the given masks, and the gradient of their loss, in our layout."""
    nca, states = GrowingNCA(problem), to_torch(problem["states"])
    for fire in torch.tensor(problem["masks"], device=DEVICE):
        states = nca(states, fire[:, None])
    ((states[:, :4] - to_torch(problem["target"])) ** 2).mean().backward()
    nca.cpu()
    return {
        "states": to_numpy(states),
        "hidden/kernel": nca.hidden.weight.grad[:, :, 0, 0].T.numpy()[np.argsort(FEATURES)],
        "hidden/bias": nca.hidden.bias.grad.numpy(),
        "update/kernel": nca.update.weight.grad[:, :, 0, 0].T.numpy(),
        "update/bias": nca.update.bias.grad.numpy(),
    }


def train(problem: dict) -> Callable:
    """The train step of CAX's notebook."""
    nca = GrowingNCA(problem)
    optimizer = torch.optim.Adam(nca.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 2_000)

    def clip():
        torch.nn.utils.clip_grad_norm_(nca.parameters(), 1.0)

    return train_step(problem, nca, optimizer, schedule, clip)


def race(problem: dict) -> Callable:
    """The train step of notebook 01 at its preset `laptop`."""
    nca = GrowingNCA(problem)
    optimizer = torch.optim.Adam(nca.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2_000, 2e-5)

    def normalise():
        for weight in nca.parameters():
            weight.grad /= weight.grad.norm() + 1e-8

    return train_step(problem, nca, optimizer, schedule, normalise, goes_on=True)


def train_step(problem, nca, optimizer, schedule, tame: Callable, goes_on=False) -> Callable:
    """Returns a function that trains once on a batch from the pool and returns the loss.

    What grew goes back into the pool if it `goes_on`, otherwise beside it (see `here.train`).
    """
    pool, target, first = (to_torch(problem[name]) for name in ("states", "target", "first"))
    results = pool if goes_on else pool.clone()
    shortest, longest = map(int, problem["lengths"])
    batch_size = int(problem["batch_size"])

    advance = torch.compile(nca) if compiled else nca

    def losses(states):
        return ((states[:, :4] - target) ** 2).mean((1, 2, 3))

    def once():
        chosen = torch.randperm(len(pool), device=DEVICE)[:batch_size]
        chosen = chosen[losses(pool[chosen]).argsort(descending=True)]
        states = pool[chosen]
        states[0] = first
        states = states.contiguous(memory_format=torch.channels_last)
        lengths = torch.randint(shortest, longest + 1, (batch_size,), device=DEVICE)
        ends = torch.empty_like(states)
        for step in range(1, longest + 1):
            states = advance(states)
            ends = torch.where((lengths == step)[:, None, None, None], states, ends)
        loss = losses(ends).mean()
        optimizer.zero_grad()
        loss.backward()
        tame()
        optimizer.step()
        schedule.step()
        results[chosen] = ends.detach()
        return float(loss.detach())

    return once


def inference(problem: dict) -> Callable:
    """A rollout without a gradient."""
    nca, first = GrowingNCA(problem), to_torch(problem["states"])

    @torch.no_grad()
    def once():
        states = first.contiguous(memory_format=torch.channels_last)
        for _ in range(int(problem["num_steps"])):
            states = nca(states)
        return float(states.sum())  # Waits for a GPU.

    return once
