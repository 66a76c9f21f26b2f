"""One page about one run or several side by side, which needs no other file."""

import base64
import contextlib
import csv
import html
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from pocketgan.files import write_whole
from pocketgan.run_config import flat
from pocketgan.run_folder import COMPRESSION_FILE, ENVIRONMENT_FILE, TRACE_FILE, last_figures

SHOWN_PICTURES = 4
# settings of where and how, not of what
LEFT_OUT = ("trainer.default_root_dir", "ckpt_path", "logging.")
WIDTH, HEIGHT, MARGIN = 340, 150, 34
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --accent: light-dark(#0b57d0, #8ab4f8) }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem }
.runs > section { min-width: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0 1rem }
caption { font-weight: bold; text-align: left }
th, td { border-bottom: 1px solid var(--line); padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }
th { font-weight: normal } thead th { font-weight: bold }
pre { overflow-x: auto; font-size: .8rem }
svg { width: 100%; height: auto; max-width: 26rem }
svg text { font-size: 10px; fill: currentColor } svg .axis { stroke: var(--line) }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 1.5 } svg circle { fill: var(--accent) }
.compare { margin: 0 0 1rem; max-width: 24rem }
.frame { position: relative; line-height: 0 }
.frame img { width: 100%; height: auto; image-rendering: auto }
.frame img + img { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--cut, 50%)) }
.compare input { width: 100%; accent-color: var(--accent) }
.compare label { display: block; font-size: .9rem }
"""
_SCRIPT = """
for (const slider of document.querySelectorAll(".compare input")) {
  const frame = slider.closest(".compare").querySelector(".frame");
  const show = () => frame.style.setProperty("--cut", slider.value + "%");
  slider.addEventListener("input", show);
  show();
}
"""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder tells.

    Attributes:
        name: How the run is called on the page.
        config: Values by config path.
        config_text: ``config.yaml``.
        curves: (images, value) of each logged figure.
        pictures: (photo, made) from the last sheet of samples.
        tables: Caption to rows.
        environment: Of ``environment.json``.
    """

    name: str
    config: dict[str, Any]
    config_text: str
    curves: dict[str, list[tuple[float, float]]]
    pictures: list[tuple[Image.Image, Image.Image]]
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
    made_with = json.loads((run / ENVIRONMENT_FILE).read_text()) if (run / ENVIRONMENT_FILE).is_file() else {}
    return RunRecord(
        run.resolve().name,
        flat(yaml.safe_load(text)),
        text,
        _curves(run / "metrics.csv"),
        _pictures(run),
        {**_last_figures(run), **_sizes(run), **_rank_trace(run), **_compression(run), **_exports(run)},
        made_with,
    )


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
    return [RunRecord(**{**vars(record), "name": str(run)}) for record, run in zip(records, runs, strict=True)]


def _differences(records: list[RunRecord]) -> str:
    paths = dict.fromkeys(path for record in records for path in record.config)
    rows = []
    for path in paths:
        values = [str(record.config.get(path, "not there")) for record in records]
        if len(set(values)) > 1 and not path.startswith(LEFT_OUT):
            rows.append([path, *values])
    if not rows:
        return "<p>The runs have the same settings.</p>"
    return table("What the runs do otherwise", rows, ["setting", *(record.name for record in records)])


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
    parts = [f"<section><h2>{html.escape(record.name)}</h2>"]
    for place, (photo, made) in enumerate(record.pictures):
        parts.append(_comparison(f"slider-{number}-{place}", photo, made))
    parts += [curve(name, points) for name, points in record.curves.items() if len(points) > 1]
    parts += [table(caption, rows) for caption, rows in record.tables.items()]
    if record.environment:
        rows = [[name, _plain(value)] for name, value in flat(record.environment).items()]
        parts.append(f"<details><summary>Environment</summary>{table('Made with', rows)}</details>")
    parts.append(
        f"<details><summary>config.yaml</summary><pre>{html.escape(record.config_text)}</pre></details></section>"
    )
    return "".join(parts)


def _comparison(identity: str, photo: Image.Image, made: Image.Image) -> str:
    return (
        f'<div class="compare"><div class="frame"><img src="{_data(photo)}" alt="Photo">'
        f'<img src="{_data(made)}" alt="The GAN\'s edit of it"></div>'
        f'<label for="{identity}">Photo left, edit right</label>'
        f'<input id="{identity}" type="range" min="0" max="100" value="50"></div>'
    )


def _data(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def curve(name: str, points: list[tuple[float, float]]) -> str:
    """A figure over images as an SVG that follows the page's colours."""
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    span, end = (high - low) or 1.0, max(xs) or 1.0
    placed = [
        (MARGIN + (WIDTH - MARGIN - 8) * x / end, HEIGHT - 22 - (HEIGHT - 44) * (y - low) / span) for x, y in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in placed) if len(placed) < 30 else ""
    described = f"{name}: {ys[0]:.4g} at {xs[0]:,.0f} images, {ys[-1]:.4g} at {xs[-1]:,.0f}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(described)}">'
        f'<text x="{MARGIN}" y="12">{html.escape(name)}</text>'
        f'<line class="axis" x1="{MARGIN}" y1="{HEIGHT - 18}" x2="{WIDTH - 8}" y2="{HEIGHT - 18}"/>'
        f'<text x="0" y="26">{high:.3g}</text><text x="0" y="{HEIGHT - 22}">{low:.3g}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 5}">0</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 5}" text-anchor="end">{end:,.0f} images</text>'
        f'<polyline points="{line}"/>{marks}</svg>'
    )


def _curves(file: Path) -> dict[str, list[tuple[float, float]]]:
    if not file.is_file():
        return {}
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("images")]
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            stage = name.split("/")[0]
            if value and "/" in name and stage != "test":
                found.setdefault(name, []).append((float(row["images"]), float(value)))
    # what is judged first, then what is trained, then the rest
    order = {"val": 0, "train": 1}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0].split("/")[0], 2), item[0])))


def _last_figures(run: Path) -> dict[str, list[list[str]]]:
    tables = {}
    for stage, told in (("val", "validation"), ("test", "test")):
        with contextlib.suppress(FileNotFoundError, ValueError):  # not measured yet
            figures = last_figures(run, stage)
            rows = [[name, f"{value:.4g}"] for name, value in figures.items() if name != "images"]
            tables[f"Last figures on the {told} photos"] = rows
    return tables


def _sizes(run: Path) -> dict[str, list[list[str]]]:
    files = [*sorted((run / "checkpoints").glob("*.ckpt")), *sorted((run / "adapter").glob("*"))]
    rows = [[str(file.relative_to(run)), f"{file.stat().st_size / 1024:,.0f} KiB"] for file in files if file.is_file()]
    return {"Sizes": rows} if rows else {}


def _rank_trace(run: Path) -> dict[str, list[list[str]]]:
    file = run / TRACE_FILE
    if not file.is_file():
        return {}
    rows = [
        [f"factor {row['factor']}", _plain(row.get("ranks", "the base")), _plain(row["figures"])]
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
        if isinstance(figures, dict) and {"median_ms", "p95_ms", "bytes"} <= figures.keys():
            rows.append(
                [
                    file.stem,
                    f"{figures['bytes'] / 1024:,.0f} KiB",
                    f"median {figures['median_ms']:.1f} ms, p95 {figures['p95_ms']:.1f} ms at {figures['size']} px, "
                    f"{figures['threads']} threads",
                ]
            )
    return {"Exported": rows} if rows else {}


def _pictures(run: Path) -> list[tuple[Image.Image, Image.Image]]:
    """Photo and edit of the last sheet of samples, which says how it is laid out."""
    sheets = sorted((run / "samples").glob("images_*.png"))
    if not sheets:
        return []
    with Image.open(sheets[-1]) as opened:
        layout = json.loads(opened.info.get("layout", "null"))
        sheet = opened.convert("RGB")
    if not layout or layout["columns"][0] != "photo":
        return []
    cells = [[sheet.crop(box) for box in row] for row in layout["boxes"]]
    return [(row[0], row[-1]) for row in cells[:SHOWN_PICTURES]]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
