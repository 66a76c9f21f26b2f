"""One page about one run or several side by side, which needs no other file."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from math import log10
from pathlib import Path
from typing import Any

from PIL import Image

from pocketgan.files import write_whole
from pocketgan.run_config import flat
from pocketgan.run_record import Points, RunRecord, ShownRow, StopTrace, plain, read_run

# settings of where and how, not of what
LEFT_OUT = re.compile(
    r"trainer\.(default_root_dir|enable_progress_bar)$|ckpt_path$|logging\.|mirror\.|.*\.\w*ProgressBar(\[\d+\])?(\.|$)"
)
WIDTH, HEIGHT, MARGIN = 340, 150, 44
SMALLEST = 1e-12
NOT_THERE = "not there"
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --accent: light-dark(#0b57d0, #8ab4f8) }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem }
.runs > section { min-width: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0 1rem }
caption { font-weight: bold; text-align: left }
th, td { border-bottom: 1px solid var(--line); padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }
td, th { overflow-wrap: anywhere; min-width: 6rem } th { font-weight: normal } thead th { font-weight: bold }
pre { overflow-x: auto; font-size: .8rem }
svg { width: 100%; height: auto; max-width: 26rem }
svg text { font-size: 10px; fill: currentColor } svg .axis { stroke: var(--line) }
svg .threshold { stroke: currentColor; stroke-dasharray: 4 3 } svg .stop { stroke: var(--accent) }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 1.5 } svg circle { fill: var(--accent) }
.row { display: flex; flex-wrap: wrap; gap: 1rem; margin: 0 0 1rem }
.row > * { flex: 1 1 8rem; max-width: 15rem; margin: 0 }
.row figure img { width: 100%; height: auto; display: block }
.row figcaption { font-size: .9rem }
.frame { position: relative; line-height: 0 }
.frame img { width: 100%; height: auto; image-rendering: auto }
.frame img + img { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--cut, 50%)) }
.compare input { width: 100%; accent-color: var(--accent) }
.compare label { display: block; font-size: .9rem }
"""
_SCRIPT = """
for (const slider of document.querySelectorAll(".compare input")) {
  const frame = slider.closest(".compare").querySelector(".frame");
  const show = () => {
    frame.style.setProperty("--cut", slider.value + "%");
    slider.setAttribute("aria-valuetext", slider.value + " % " + slider.dataset.left);
  };
  slider.addEventListener("input", show);
  show();
}
"""


def write_run_report(runs: Sequence[Path], out: Path) -> None:
    """Write the page.

    Args:
        runs: Run folders; several stand side by side, differences of their configs first.
        out: The HTML file.

    Raises:
        FileNotFoundError: A folder is no run.
        ValueError: No run is given, or the file would be no HTML.
    """
    if not runs:
        raise ValueError("give at least one run folder")
    if out.suffix.lower() not in {".html", ".htm"}:
        raise ValueError(f"{out} would not be a page; name a file that ends in .html")
    records = _told_apart([read_run(run) for run in runs], runs)
    title = "pocketgan: " + ", ".join(record.name for record in records)
    body = [f"<h1>{html.escape(title)}</h1>"]
    if len(records) > 1:
        body.append(_differences(records))
    body.append(
        '<div class="runs">' + "".join(_section(record, number) for number, record in enumerate(records)) + "</div>"
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())


def _told_apart(records: list[RunRecord], runs: Sequence[Path]) -> list[RunRecord]:
    names = [record.name for record in records]
    if len(set(names)) == len(names):
        return records
    return [replace(record, name=str(run)) for record, run in zip(records, runs, strict=True)]


def _differences(records: list[RunRecord]) -> str:
    differing = {}
    for path in dict.fromkeys(path for record in records for path in record.config):
        # an empty list says no more than none
        values = [
            str(record.config.get(path) if record.config.get(path, []) != [] else NOT_THERE) for record in records
        ]
        if len(set(values)) > 1 and not LEFT_OUT.match(path):
            differing[path] = values
    if not differing:
        return "<p>The runs have the same settings.</p>"
    slots = tuple(f"{path.removesuffix('.class_path')}." for path in differing if _names_class(path))
    shown: list[list[str]] = []
    only_some: list[list[str]] = []
    for path, values in differing.items():
        if f"{path}.class_path" in differing and {*values} <= {"None", NOT_THERE}:  # a slot that some runs leave empty
            continue
        follows = NOT_THERE in values and path.removesuffix(".class_path").startswith(slots)
        (only_some if follows else shown).append([path, *values])
    head = ["setting", *(record.name for record in records)]
    parts = [table("What the runs do otherwise", shown, head)]
    if only_some:
        whole = table("Settings of classes that not every run has", only_some, head)
        parts.append(
            f"<details><summary>{len(only_some)} settings of classes that not every run has</summary>{whole}</details>"
        )
    return "".join(parts)


def _names_class(path: str) -> bool:
    """Whether a path is of the class in a slot, or of a class in a list."""
    name = path.rpartition(".")[2]
    return name == "class_path" or name[:1].isupper()


def table(caption: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """An HTML table; the first cell of a row is its heading."""
    header = (
        f"<thead><tr>{''.join(f'<th scope=col>{html.escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    )
    lines = "".join(
        f'<tr><th scope="row">{html.escape(str(first))}</th>'
        + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in others)
        + "</tr>"
        for first, *others in rows
    )
    whole = f"<table><caption>{html.escape(caption)}</caption>{header}<tbody>{lines}</tbody></table>"
    return f'<div class="scroll">{whole}</div>'


def _section(record: RunRecord, number: int) -> str:
    parts = [f"<section><h2>{html.escape(record.name)}</h2>", _end(record.ended)]
    if record.pictures:
        parts.append("<h3>Pictures</h3>")
    parts += [_row(f"slider-{number}-{place}", row) for place, row in enumerate(record.pictures)]
    if record.trace is not None:
        parts.append(_stop(record.trace))
    parts += _curves(record)
    parts += [table(caption, rows) for caption, rows in record.tables.items()]
    if record.environment:
        rows = [[name, plain(value)] for name, value in flat(record.environment).items()]
        parts.append(f"<details><summary>Environment</summary>{table('Made with', rows)}</details>")
    parts.append(
        f"<details><summary>config.yaml</summary><pre>{html.escape(record.config_text)}</pre></details></section>"
    )
    return "".join(parts)


def _end(ended: dict[str, Any]) -> str:
    if not ended:
        return "<p>No end is noted: the training goes on, was killed, or is of an older version.</p>"
    images = "" if ended["images"] is None else f" after {ended['images']:,} images"
    when = f"{datetime.fromisoformat(ended['time']):%Y-%m-%d %H:%M} UTC"
    return (
        f'<p>Ended{images}, <time datetime="{html.escape(ended["time"])}">{when}</time>: '
        f"{html.escape(ended['reason'])} ({html.escape(ended['by'])}).</p>"
    )


def _row(identity: str, row: ShownRow) -> str:
    parts = []
    if row.compared:
        (left, before), (right, after) = row.compared
        parts.append(
            f'<div class="compare"><div class="frame">{_image(left, before)}{_image(right, after)}</div>'
            f'<label for="{identity}">Left: {html.escape(left)}. Right: {html.escape(right)}.</label>'
            f'<input id="{identity}" type="range" min="0" max="100" value="50" data-left="{html.escape(left)}"></div>'
        )
    parts += [
        f"<figure>{_image(name, picture)}<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, picture in row.beside
    ]
    return f'<div class="row">{"".join(parts)}</div>'


def _image(name: str, picture: Image.Image) -> str:
    return f'<img src="{_data(picture)}" alt="{html.escape(name)}">'


def _stop(trace: StopTrace) -> str:
    drawn = [curve("loss on frozen examples", trace.objective, trace.unit)]
    if trace.ratio:
        name = f"variance of the last {trace.window} values / of all"
        drawn.append(curve(name, trace.ratio, trace.unit, trace.threshold or None, trace.stop))
    else:
        drawn.append(f"<p>It needs more than {trace.window} values, and there were {len(trace.objective)}.</p>")
    return f"<h3>What early stopping followed</h3>{''.join(drawn)}"


def _curves(record: RunRecord) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name, points in record.curves.items():
        if len(points) > 1:
            groups.setdefault(name.split("/")[0], []).append(curve(name, points))
    parts = []
    for stage, drawn in groups.items():
        if stage == "speed":
            parts.append(f"<details><summary>Speed</summary>{''.join(drawn)}</details>")
            continue
        count = record.counts.get(stage)
        title = f"On the validation photos{f' ({count})' if count else ''}"
        if stage != "val":
            title = "Training" if stage == "train" else stage
        parts.append(f"<h3>{html.escape(title)}</h3>{''.join(drawn)}")
    return parts


def _data(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def curve(
    name: str, points: Points, unit: str = "images", threshold: float | None = None, stop: float | None = None
) -> str:
    """A figure over a run as an SVG that follows the page's colours.

    Args:
        name: What is drawn.
        points: (place, value).
        unit: What places count.
        threshold: A value to compare with, above 0, as a dashed line; the scale of values is a logarithmic one then.
        stop: A place to mark.
    """
    xs, ys = zip(*points, strict=True)
    # a ratio of 0, where the last values are all the same, has no logarithm
    scaled = [y if threshold is None else log10(max(y, SMALLEST)) for y in ys]
    limit = [] if threshold is None else [log10(threshold)]
    low, high = min(*scaled, *limit), max(*scaled, *limit)
    span, end = (high - low) or 1.0, max(xs) or 1.0

    def across(x: float) -> float:
        return MARGIN + (WIDTH - MARGIN - 8) * x / end

    def down(y: float) -> float:
        return HEIGHT - 22 - (HEIGHT - 44) * (y - low) / span

    placed = [(across(x), down(y)) for x, y in zip(xs, scaled, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in placed) if len(placed) < 30 else ""
    described = f"{name}: {ys[0]:.4g} at {xs[0]:,.0f} {unit}, {ys[-1]:.4g} at {xs[-1]:,.0f}"
    if threshold is not None:
        y = down(limit[0])
        described += f"; the threshold is {threshold:g}"
        marks += (
            f'<line class="threshold" x1="{MARGIN}" y1="{y:.1f}" x2="{WIDTH - 8}" y2="{y:.1f}"/>'
            f'<text x="{MARGIN + 4}" y="{y - 4:.1f}">threshold {threshold:g}</text>'
        )
    if stop is not None:
        x = across(stop)
        described += f"; stop at {stop:,.0f} {unit}"
        marks += (
            f'<line class="stop" x1="{x:.1f}" y1="22" x2="{x:.1f}" y2="{HEIGHT - 18}"/>'
            f'<text x="{x - 4:.1f}" y="30" text-anchor="end">stop at {stop:,.0f}</text>'
        )
    top, bottom = (value if threshold is None else 10**value for value in (high, low))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(described)}">'
        f'<text x="{MARGIN}" y="12">{html.escape(name)}</text>'
        f'<line class="axis" x1="{MARGIN}" y1="{HEIGHT - 18}" x2="{WIDTH - 8}" y2="{HEIGHT - 18}"/>'
        f'<text x="0" y="26">{top:.3g}</text><text x="0" y="{HEIGHT - 22}">{bottom:.3g}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 5}">0</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 5}" text-anchor="end">{end:,.0f} {unit}</text>'
        f'<polyline points="{line}"/>{marks}</svg>'
    )
