"""Are our distances the values of clean-fid and torchmetrics, and how long do they take on the same features?

python -m benchmarks.metrics > benchmarks/metrics.md
"""

import argparse
import os
import statistics
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from cleanfid import fid as cleanfid
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from benchmarks.runs import commit
from pocketgan.metrics import frechet_distance, kernel_distance, kernel_distance_interval

Distance = Callable[[Tensor, Tensor], float]
PEERS = ("clean-fid", "torchmetrics")


def random_features(count: int, mixing: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """(N, D) float64, positive and correlated as pooled activations are: the variances fall as 1 / i."""
    size = len(mixing)
    scale = torch.arange(1, size + 1, dtype=torch.float64).rsqrt()
    latents = torch.randn(count, size, generator=generator, dtype=torch.float64) * scale
    return F.softplus(latents @ mixing + shift)


def frechet_by_cleanfid(a: Tensor, b: Tensor) -> float:
    statistics_of_sets = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a.numpy(), b.numpy())]
    with warnings.catch_warnings():
        # clean-fid 0.1.35, the last release, passes an argument that SciPy 1.18 removes:
        # https://docs.scipy.org/doc/scipy/reference/generated/scipy.linalg.sqrtm.html
        warnings.filterwarnings("ignore", message="The `disp` argument is deprecated", category=DeprecationWarning)
        return float(cleanfid.frechet_distance(*statistics_of_sets[0], *statistics_of_sets[1]))


def kernel_by_cleanfid(a: Tensor, b: Tensor) -> float:
    # one subset of all images, where its default is 100 subsets of up to 1,000
    return float(cleanfid.kernel_distance(a.numpy(), b.numpy(), num_subsets=1, max_subset_size=len(a)))


FRECHET: dict[str, Distance] = {
    "pocketgan": lambda a, b: frechet_distance(a, b).item(),
    "clean-fid": frechet_by_cleanfid,
    "torchmetrics": lambda a, b: _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()).item(),
}
KERNEL: dict[str, Distance] = {
    "pocketgan": lambda a, b: kernel_distance(a, b).item(),
    "clean-fid": kernel_by_cleanfid,
    "torchmetrics": lambda a, b: poly_mmd(a, b).item(),
    "pocketgan with interval": lambda a, b: (kernel_distance_interval(a, b), kernel_distance(a, b).item())[1],
}


def timed(distance: Distance, a: Tensor, b: Tensor) -> tuple[float, float]:
    """Value and milliseconds of a call; calls are repeated until 0.2 s are over."""
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < 0.2:
        value = distance(a, b)
        calls += 1
    return value, (time.perf_counter() - start) * 1000 / calls


def figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def spread(values: list[float]) -> str:
    return f"{figure(statistics.median(values))} ({figure(min(values))}–{figure(max(values))})"


def compare(
    title: str, distances: dict[str, Distance], sets: dict[int, tuple[Tensor, Tensor]], repetitions: int
) -> tuple[str, str]:
    """One sentence and a table for all computations of a distance, taken in turn, on all sets."""
    lines = [
        "| N | computed by | value | relative difference | ms, median (min–max) | times pocketgan's |",
        "|---|---|---|---|---|---|",
    ]
    largest = 0.0
    ratio_medians: dict[str, list[float]] = {name: [] for name in PEERS}
    for count, (a, b) in sets.items():
        values: dict[str, float] = {}
        milliseconds: dict[str, list[float]] = {name: [] for name in distances}
        for repetition in range(repetitions):
            for name, distance in distances.items():
                print(f"N = {count}, repetition {repetition}, {name}", file=sys.stderr)
                values[name], taken = timed(distance, a, b)
                milliseconds[name].append(taken)
        ours, our_milliseconds = values["pocketgan"], milliseconds["pocketgan"]
        for name, value in values.items():
            difference = abs(value - ours) / abs(ours)
            ratios = [taken / our for taken, our in zip(milliseconds[name], our_milliseconds, strict=True)]
            if name in PEERS:
                largest = max(largest, difference)
                ratio_medians[name].append(statistics.median(ratios))
            lines.append(
                f"| {count} | {name} | {value:.8g} | {f'{difference:.0e}' if name in PEERS else ''} | "
                f"{spread(milliseconds[name])} | {'1' if name == 'pocketgan' else spread(ratios)} |"
            )
    times = " and ".join(
        f"{name} takes {figure(min(medians))} to {figure(max(medians))} times"
        for name, medians in ratio_medians.items()
    )
    sentence = f"* {title}: the values differ by {largest:.0e} of themselves at most. {times} as long as ours."
    return textwrap.fill(sentence, 118, subsequent_indent="  "), "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 500, 3000])
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(options.features, options.features, generator=generator, dtype=torch.float64)
    sets = {
        count: (random_features(count, mixing, 0.0, generator), random_features(count, mixing, 0.2, generator))
        for count in options.counts
    }
    with threadpool_limits(options.threads):
        frechet_sentence, frechet_table = compare("Fréchet distance", FRECHET, sets, options.repetitions)
        kernel_sentence, kernel_table = compare("Kernel distance", KERNEL, sets, options.repetitions)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "scipy", "clean-fid", "torchmetrics"))
    print(f"""# Are our distances clean-fid's and torchmetrics' values, and what do they cost?
{frechet_sentence}
{kernel_sentence}

Two sets of N features of D = {options.features}, float64, positive, correlated, seed 0; covariances of rank N - 1 where
N ≤ D. Times are from features to distance, so with mean and covariance where these are needed. The computations take
turns; {options.repetitions} repetitions. {os.cpu_count()} CPU cores, threads: {options.threads}, {versions}, commit
{commit()}

## Fréchet distance
clean-fid takes scipy's `sqrtm` of a D×D matrix, torchmetrics its eigenvalues, we singular values of a matrix of size
min(N, D).

{frechet_table}

## Kernel distance
All images at once: clean-fid with one subset of N, torchmetrics' `poly_mmd`. The last row computes the bootstrap
interval as well (1,000 resamples).

{kernel_table}

```bash
python -m benchmarks.metrics{"".join(f" {word}" for word in sys.argv[1:])} > benchmarks/metrics.md
```""")
