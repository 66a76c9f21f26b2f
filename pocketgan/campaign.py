"""Many concepts from one base: a `fit` and a `test` for each, and one table."""

import csv
import io
import json
import os
import queue
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketgan.files import write_whole

RESULT_FILE, TABLE_FILE = "adapted.json", "adapters.csv"


def run_campaign(
    command: Callable[[list[str]], None],
    base: Path,
    pairs: Path,
    concepts: str,
    out: Path,
    config: Path | None = None,
    ranks: Path | None = None,
    search: bool = False,
    devices: int = 1,
    fit_options: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Adapt a base to concepts, one run folder each; those that are done are skipped, those broken off go on.

    Args:
        command: Runs one pocketgan command line, given without the program's name; used with one device.
        base: Run folder of the base. Size, split and seed of its data hold for the adapters, too.
        pairs: Pair set.
        concepts: Names with commas between, or ``all``: every concept of the set that the base was not trained on.
        out: Gets ``<concept>/`` and ``adapters.csv``.
        config: The adaptation's YAML; ``configs/lora_adaptation/small.yaml`` if None.
        ranks: YAML file of LoRA ranks for all; the config's own if None.
        search: Search the ranks on the first concept; the others take what it found.
        devices: Number of GPUs, each with a concept of its own at a time; or of processes where there is none.
        fit_options: Further words of each ``fit``.

    Returns:
        A row for each concept: name, figures, and ``state`` (``new``, ``done before`` or ``failed: …``).

    Raises:
        ValueError: A concept or an option makes no sense, a run in ``out`` was made with other settings, or a concept
            failed; the others were finished first.
    """
    from lightning_modules import load_run, trained_data_of
    from pocketgan.digest import weights_digest
    from pocketgan.pair_set import set_hash

    if search and ranks is not None:
        raise ValueError("--search and --ranks exclude each other; give the rank file alone to use ranks found before")
    if devices < 1:
        raise ValueError(f"devices is {devices}; give 1 or more")
    if ranks is not None and not ranks.is_file():
        raise FileNotFoundError(f"rank file {ranks} does not exist; RankSearch writes RUN/ranks.yaml")
    model = load_run(base)
    names = _chosen(concepts, pairs, model.concepts)
    data = trained_data_of(base)
    words = [
        f"-c={config or files('configs') / 'lora_adaptation' / 'small.yaml'}",
        f"--model.base={base}",
        f"--data.root={pairs}",
        *(f"--data.{key}={json.dumps(data[key])}" for key in ("size", "crop_from", "split", "seed")),
        *(fit_options or []),
    ]
    settings = {
        "base_sha256": weights_digest(model.generator_ema),
        "pairs": set_hash(pairs),
        "words": [word for word in words if not word.startswith(("--model.base=", "--data.root="))],
        "ranks": ranks.read_text() if ranks else "searched" if search else "config",
    }
    for name in names:
        _check_settings(out / name, settings)
    out.mkdir(parents=True, exist_ok=True)

    def adapt(name: str, run: Callable[[list[str]], None], *more: str) -> dict[str, Any]:
        folder = out / name
        if (folder / RESULT_FILE).exists():
            return {**json.loads((folder / RESULT_FILE).read_text())["row"], "state": "done before"}
        folder.mkdir(exist_ok=True)
        write_whole(folder / "campaign.json", json.dumps(settings).encode())
        start = time.monotonic()
        resumed = ["--ckpt_path=last"] if (folder / "config.yaml").exists() else []
        own = [f"--data.concepts=[{name}]", f"--trainer.default_root_dir={folder}"]
        try:
            run(["fit", *words, *own, *more, *resumed])
            run(["test", f"-c={folder}/config.yaml"])
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            # the next concept may well succeed; the campaign fails at its end
            traceback.print_exc()
            return {"concept": name, "state": f"failed: {str(error).splitlines()[0]}"}
        row = {"concept": name, "seconds": round(time.monotonic() - start, 1), **_figures(folder)}
        write_whole(folder / RESULT_FILE, json.dumps({"row": row}).encode())
        return {**row, "state": "new"}

    first = ["--trainer.callbacks+=RankSearch"] if search else []
    shared = [f"--model.ranks={ranks}"] if ranks else []
    rows = []
    if search:
        rows.append(adapt(names[0], command, *first))
        found = out / names[0] / "ranks.yaml"
        if not found.is_file():
            raise ValueError(f"the rank search on {names[0]} {rows[0]['state']}")
        shared = [f"--model.ranks={found}"]
    rest = names[len(rows) :]
    if devices == 1:
        rows += [adapt(name, command, *shared) for name in rest]
    else:
        rows += _side_by_side(rest, devices, lambda name, run: adapt(name, run, *shared))
    _report(rows, out / TABLE_FILE)
    failed = [str(row["concept"]) for row in rows if str(row["state"]).startswith("failed")]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} concepts failed ({', '.join(failed)}); start again to retry")
    return rows


def _chosen(concepts: str, pairs: Path, known: list[str]) -> list[str]:
    from pocketgan.pair_set import read_pairs

    if not (pairs / "manifest.json").is_file():
        raise FileNotFoundError(f"{pairs} is no pair set (manifest.json is missing); make one with `pocketgan predict`")
    held = sorted({pair.concept for pair in read_pairs(pairs)})
    if concepts == "all":
        names = [name for name in held if name not in known]
        if not names:
            raise ValueError(f"the base was trained on all concepts of {pairs}; name those to adapt to by --concepts")
        return names
    names = [name.strip() for name in concepts.split(",") if name.strip()]
    unknown = [name for name in names if name not in held]
    if unknown or not names:
        raise ValueError(f"unknown concept {', '.join(unknown) or '(none given)'}; {pairs} holds {', '.join(held)}")
    return list(dict.fromkeys(names))


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / "campaign.json"
    if not file.is_file():
        if (folder / "config.yaml").exists():
            raise ValueError(f"{folder} holds a run that no campaign made; choose another --out")
        return
    found = json.loads(file.read_text())
    other = [name for name, value in settings.items() if found.get(name) != value]
    if other:
        raise ValueError(
            f"{folder} was adapted with other settings ({', '.join(other)}); choose another --out or delete it"
        )


def _figures(folder: Path) -> dict[str, float]:
    with (folder / "metrics.csv").open() as file:
        tested = [row for row in csv.DictReader(file) if row.get("test/reconstruction")][-1]
    figures = {name.removeprefix("test/"): value for name, value in tested.items() if name.startswith("test/")}
    stored = sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors"))
    return {
        "images": float(tested["images"]),
        "bytes": stored,
        **{name: float(value) for name, value in figures.items() if value},
    }


def _side_by_side(
    names: list[str], devices: int, adapt: Callable[[str, Callable[[list[str]], None]], dict[str, Any]]
) -> list[dict[str, Any]]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    free: queue.Queue[str] = queue.Queue()
    for device in visible.split(",")[:devices] if visible else map(str, range(devices)):
        free.put(device)

    def on_a_device(name: str) -> dict[str, Any]:
        device = free.get()

        def run(words: list[str]) -> None:
            done = subprocess.run(
                [sys.executable, "-m", "pocketgan", *words],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": device},
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                raise RuntimeError(lines[-1])

        try:
            return adapt(name, run)
        finally:
            free.put(device)

    with ThreadPoolExecutor(free.qsize()) as pool:
        return list(pool.map(on_a_device, names))


def _report(rows: list[dict[str, Any]], file: Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns.append(columns.pop(columns.index("state")))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue().encode())
    table = Table(title=str(file))
    for name in columns:
        table.add_column(name, justify="left" if name in {"concept", "state"} else "right")
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console().print(table)
