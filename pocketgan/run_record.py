"""What a run folder tells, read for the page about runs."""

import contextlib
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pocketgan.loss_tracking import variance_ratio
from pocketgan.run_config import flat
from pocketgan.run_folder import (
    COMPRESSION_FILE,
    ENDED_FILE,
    ENVIRONMENT_FILE,
    TRACE_FILE,
    TRACKING_FILE,
    last_figures,
)

SHOWN_PICTURES = 4
STAGES = {"val": "validation", "test": "test"}
# figures that are the N of others
COUNTS = ("measured_images", "images_per_concept", "generated_images", "real_images")
NAMES = {"teacher": "The teacher's edit", "real": "A real image (not its target)"}

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class ShownRow:
    """A row of the sheets of samples.

    Attributes:
        compared: Two pictures of one thing, by what they are; none where no two are of one thing.
        beside: What else there is to see, by what it is.
    """

    compared: list[tuple[str, Image.Image]]
    beside: list[tuple[str, Image.Image]]


@dataclass(frozen=True)
class StopTrace:
    """What early stopping followed.

    Attributes:
        objective: (place, loss on frozen examples).
        ratio: (place, variance of the last values over that of all), from the first place that can stop the run.
        unit: What places count.
        window: Number of the last values.
        threshold: The ratio below which the run ends.
        stop: The place at which it ended; None if something else ended it.
    """

    objective: Points
    ratio: Points
    unit: str
    window: int
    threshold: float
    stop: float | None


@dataclass(frozen=True)
class RunRecord:
    """What a run folder tells.

    Attributes:
        name: How the run is called on the page.
        config: Values by config path.
        config_text: ``config.yaml``.
        ended: Of ``ended.json``; empty if the run noted no end.
        trace: What early stopping followed; None if nothing did, or not up to the end.
        curves: (images, value) of each logged figure.
        counts: N by stage, in words.
        pictures: Of the last sheet of samples.
        tables: Caption to rows.
        environment: Of ``environment.json``.
    """

    name: str
    config: dict[str, Any]
    config_text: str
    ended: dict[str, Any]
    trace: StopTrace | None
    curves: dict[str, Points]
    counts: dict[str, str]
    pictures: list[ShownRow]
    tables: dict[str, list[list[str]]]
    environment: dict[str, Any] = field(default_factory=dict)


def read_run(run: Path) -> RunRecord:
    """Read what a run left; what it did not leave is left out.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"{run} is not a run folder: it holds no config.yaml; give the folder of a `pocketgan fit`"
        )
    text = file.read_text()
    ended = _json(run / ENDED_FILE)
    trace = _trace(run, ended)
    figures = _last_figures(run)
    counts = {stage: _count(of_stage) for stage, of_stage in figures.items()}
    return RunRecord(
        name=run.resolve().name,
        config=flat(yaml.safe_load(text)),
        config_text=text,
        ended=ended,
        trace=trace,
        curves=_curves(run / "metrics.csv", () if trace is None else ("tracked_objective", "variance_ratio")),
        counts=counts,
        pictures=_pictures(run),
        tables={
            **_figure_tables(figures, counts),
            **_sizes(run),
            **_rank_trace(run),
            **_compression(run),
            **_exports(run),
        },
        environment=_json(run / ENVIRONMENT_FILE),
    )


def plain(value: Any) -> str:
    """A value as a reader wants it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _trace(run: Path, ended: dict[str, Any]) -> StopTrace | None:
    found = _json(run / TRACKING_FILE)
    # it is written at the end alone: what a resumed run finds is of an earlier one
    if not found or found.get("images_seen") != ended.get("images"):
        return None
    history, window = np.array(found["objective"]), found["window"]
    seen, step = found.get("images_seen"), found.get("batch_images") or 1
    # a run may have begun before it was followed
    begin = 0 if seen is None else seen - found["batches"] * step
    every = range(0, found["every_n_batches"] * len(history), found["every_n_batches"])
    places = [float(begin + batches * step) for batches in found.get("after_batches", every)]
    ratios = [(place, variance_ratio(history[:count], window)) for count, place in enumerate(places, 1)]
    return StopTrace(
        objective=list(zip(places, history.tolist(), strict=True)),
        ratio=ratios[window:],
        unit="batches" if seen is None else "images",
        window=window,
        threshold=found["threshold"],
        stop=places[-1] if found["stopped"] else None,
    )


def _curves(file: Path, left_out: tuple[str, ...]) -> dict[str, Points]:
    if not file.is_file():
        return {}
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("images")]
    found: dict[str, Points] = {}
    for row in rows:
        for name, value in row.items():
            stage, _, figure = name.partition("/")
            if value and figure and stage != "test" and figure not in (*COUNTS, *left_out):
                found.setdefault(name, []).append((float(row["images"]), float(value)))
    # what is judged first, then what is trained, then the rest
    order = {"val": 0, "train": 1}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0].split("/")[0], 2), item[0])))


def _last_figures(run: Path) -> dict[str, dict[str, float]]:
    found = {}
    for stage in STAGES:
        with contextlib.suppress(FileNotFoundError, ValueError):  # not measured yet
            found[stage] = last_figures(run, stage)
    return found


def _count(figures: dict[str, float]) -> str:
    """How many pictures figures are of; empty where nothing says so."""
    measured, per_concept, generated, real = (figures.get(name) for name in COUNTS)
    if generated is not None and real is not None:
        return f"N = {generated:.0f} generated, {real:.0f} real"
    told = [] if measured is None else [f"N = {measured:.0f}"]
    if per_concept is not None and per_concept != measured:
        told.append(f"distances: N = {per_concept:.0f} a concept")
    return "; ".join(told)


def _figure_tables(figures: dict[str, dict[str, float]], counts: dict[str, str]) -> dict[str, list[list[str]]]:
    return {
        f"Last figures on the {STAGES[stage]} photos{f' ({counts[stage]})' if counts[stage] else ''}": [
            [name, f"{value:.4g}"] for name, value in of_stage.items() if name not in ("images", *COUNTS)
        ]
        for stage, of_stage in figures.items()
    }


def _sizes(run: Path) -> dict[str, list[list[str]]]:
    files = [*sorted((run / "checkpoints").glob("*.ckpt")), *sorted((run / "adapter").glob("*"))]
    rows = [[str(file.relative_to(run)), f"{file.stat().st_size / 1024:,.0f} KiB"] for file in files if file.is_file()]
    return {"Sizes": rows} if rows else {}


def _rank_trace(run: Path) -> dict[str, list[list[str]]]:
    file = run / TRACE_FILE
    if not file.is_file():
        return {}
    rows = [
        [f"factor {row['factor']}", plain(row.get("ranks", "the base")), plain(row["figures"])]
        for row in json.loads(file.read_text())
    ]
    return {"Rank search": rows}


def _compression(run: Path) -> dict[str, list[list[str]]]:
    file = run / COMPRESSION_FILE
    if not file.is_file():
        return {}
    found = json.loads(file.read_text())
    rows = [
        [name, f"{found['before'][name]:,.4g}", f"{found['after'][name]:,.4g}"]
        for name in ("parameters", "macs", "latency_ms", "val_loss")
    ]
    return {"Compression: before, after": rows}


def _exports(run: Path) -> dict[str, list[list[str]]]:
    rows = []
    for file in sorted((*run.glob("*.json"), *run.glob("export*/*.json"))):
        figures = json.loads(file.read_text())
        if isinstance(figures, dict) and {"median_ms", "p95_ms", "bytes"} <= figures.keys() and figures["median_ms"]:
            rows.append(
                [
                    file.stem,
                    f"{figures['bytes'] / 1024:,.0f} KiB",
                    f"median {figures['median_ms']:.1f} ms, p95 {figures['p95_ms']:.1f} ms at {figures['size']} px, "
                    f"{figures['threads']} threads",
                ]
            )
    return {"Exported": rows} if rows else {}


def _pictures(run: Path) -> list[ShownRow]:
    files = sorted((run / "samples").glob("images_*.png"))
    if not files:
        return []
    columns, last = _sheet(files[-1])
    others = [NAMES.get(name, name) for name in columns]
    if columns and columns[0] == "photo":
        return [
            ShownRow([("Photo", row[0]), ("The GAN's edit", row[-1])], list(zip(others[1:-1], row[1:-1], strict=True)))
            for row in last
        ]
    first_columns, first = _sheet(files[0])
    began, ends = (f"GAN after {int(file.stem.removeprefix('images_')):,} images" for file in (files[0], files[-1]))
    rows = []
    for place, row in enumerate(last):
        beside = list(zip(others[:-1], row[:-1], strict=True))
        # latents belong to places in the split, which show in the other columns
        is_same = first_columns == columns and place < len(first) and _bytes(first[place][:-1]) == _bytes(row[:-1])
        if len(files) > 1 and is_same:
            rows.append(ShownRow([(began, first[place][-1]), (ends, row[-1])], beside))
        else:
            rows.append(ShownRow([], [(ends, row[-1]), *beside]))
    return rows


def _sheet(file: Path) -> tuple[list[str], list[list[Image.Image]]]:
    """Columns and rows of a sheet of samples, which says how it is laid out; none where it does not."""
    with Image.open(file) as opened:
        layout = json.loads(opened.info.get("layout", "null"))
        sheet = opened.convert("RGB")
    if not layout:
        return [], []
    return layout["columns"], [[sheet.crop(box) for box in row] for row in layout["boxes"][:SHOWN_PICTURES]]


def _bytes(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]
