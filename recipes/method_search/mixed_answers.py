"""What it gains to mix the kept answers of two models: attached and detached, or two of LoRA's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measurements import LORA, PAIRS, Measurements, Pair, compared

WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 1.0)


class Answers:
    """The answers of a search that `search.py --answers` kept."""

    def __init__(self, folder: Path, measured: Measurements) -> None:
        self.folder, self.measured = folder, measured

    def of(self, name: str, pair: Pair, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return a run's log-probabilities in each mode, (N, C), and its N targets."""
        with np.load(self.folder / f"{self.measured.rows[(name, *pair, seed)]['name']}.npz") as file:
            logs = [file[key].astype(np.float64) for key in ("log0", "log1") if key in file]
            return logs, file["target"].astype(int)


def scores(log_NC: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Return the nats of each item, and whether it is right, (2, N); the logs need not be normalised."""
    log_NC = log_NC - log_NC.max(1, keepdims=True)
    log_NC = log_NC - np.log(np.exp(log_NC).sum(1, keepdims=True))
    return np.array([-log_NC[np.arange(len(target_N)), target_N], log_NC.argmax(1) == target_N], float)


def mix(answers: Answers, name: str, seeds: Sequence[int]) -> str:
    """Return a line of the table: what log p_attached + w log p_detached gains over w = 0.

    The weight is chosen on one half of the items, over all seeds, and measured on the other half, both ways.
    """
    gains, chosen = np.zeros((2, len(PAIRS), len(seeds))), []
    halves = [slice(half, None, 2) for half in (0, 1)]
    for i, pair in enumerate(PAIRS):
        runs = [answers.of(name, pair, seed) for seed in seeds]
        # Axes: weight, seed, nats or right, item.
        tried = np.array([[scores(log[0] + w * log[1], target) for log, target in runs] for w in WEIGHTS])
        for choose, use in (halves, halves[::-1]):
            best = int(tried[:, :, 0, choose].mean((1, 2)).argmin())
            chosen.append(WEIGHTS[best])
            gains[:, i] += (tried[best] - tried[0])[..., use].mean(-1).T / 2
    return _line(f"{name}: + w detached", gains, f"w {chosen}")


def vote(answers: Answers, names: tuple[str, str], label: str, seeds: Sequence[tuple[int, int]]) -> str:
    """Return a line of the table: what the mean probability of two runs gains over one run of LoRA.

    `seeds` lists which seed of the first setting votes with which of the second.
    """
    gains = np.zeros((2, len(PAIRS), len(seeds)))
    for i, pair in enumerate(PAIRS):
        for j, two in enumerate(seeds):
            (one, target), (other, _) = (
                answers.of(name, pair, seed) for name, seed in zip(names, two, strict=True)
            )
            single, _ = answers.of(LORA, pair, two[0])
            gained = scores(np.logaddexp(one[0], other[0]), target) - scores(single[0], target)
            gains[:, i, j] = gained.mean(1)
    return _line(label, gains, "")


def _line(label: str, gains: np.ndarray, note: str) -> str:
    nll, points = compared(gains[0]), compared(100 * gains[1])
    by_pair = ", ".join(f"{100 * one:+.1f}" for one in gains[1].mean(1))
    return (
        f"| {label} | {nll.mean:+.4f} ± {nll.half:.4f} | {points.mean:+.2f} ± {points.half:.2f} "
        f"| {by_pair} | {note} |"
    )
