"""Many concepts from one base: a `fit` and a `test` for each, and one table."""

import csv
import hashlib
import io
import json
import os
import queue
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from pocketgan.adapters import layer_ranks, read_ranks
from pocketgan.files import write_whole
from pocketgan.pair_set import read_pairs
from pocketgan.run_folder import RANKS_FILE, TRACE_FILE, adapter_bytes, last_figures
from pocketgan.selection import read_selection

RESULT_FILE, SETTINGS_FILE, TABLE_FILE = "adapted.json", "campaign.json", "adapters.csv"
SHOWN = {"concept", "images", "bytes", "reconstruction", "ssim", "state"}  # and the kernel distance
Command = Callable[[list[str]], None]


def run_campaign(
    command: Command,
    base: Path,
    pairs: Path,
    concepts: str,
    out: Path,
    config: Path | None = None,
    ranks: Path | None = None,
    devices: int = 1,
    fit_options: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Adapt a base to concepts, one run folder each; those that are done are skipped, those broken off go on.

    A config with RankSearch searches the ranks on the first concept alone; ``out/ranks.yaml`` keeps them for the others
    and for every later campaign into the same folder.

    Args:
        command: Runs one pocketgan command line, given without the program's name; used with one device.
        base: Run folder of the base. Size, split and seed of its data hold for the adapters, too.
        pairs: Pair set.
        concepts: Names with commas between, a file of ``pocketgan select concepts``, or ``all``: every concept of the
            set that the base was not trained on.
        out: Gets ``<concept>/`` and ``adapters.csv``, which has all concepts that are done there.
        config: The adaptation's YAML; ``configs/lora_adaptation/small.yaml`` if None.
        ranks: YAML file of LoRA ranks for all; the config's own, or those of its search, if None.
        devices: Number of GPUs, each with a concept of its own at a time; or of processes where there is none.
        fit_options: Further words of each ``fit``.

    Returns:
        A row for each concept: name, figures, and ``state`` (``new``, ``done before`` or ``failed: …``); no seconds
        where the training was resumed.

    Raises:
        FileNotFoundError: Base, pair set, config or rank file is missing.
        ValueError: A concept or an option makes no sense, a run in ``out`` was made with other settings, the rank
            search failed, or a concept did; the others were finished first.
    """
    import torch

    from lightning_modules import load_base, trained_data_of
    from lightning_modules.run_state import finished_state
    from pocketgan.digest import weights_digest

    if devices < 1:
        raise ValueError(f"devices is {devices}; give 1 or more")
    if 0 < torch.cuda.device_count() < devices:
        raise ValueError(f"devices is {devices}, {torch.cuda.device_count()} GPUs are visible; give at most as many")
    if ranks is not None and not ranks.is_file():
        raise FileNotFoundError(f"rank file {ranks} does not exist; RankSearch writes RUN/ranks.yaml")
    config = config or Path(str(files("configs") / "lora_adaptation" / "small.yaml"))
    if not config.is_file():
        raise FileNotFoundError(
            f"config {config} does not exist; give a YAML such as configs/lora_adaptation/small.yaml"
        )
    if (out / "config.yaml").exists():
        raise ValueError(f"{out} is the folder of a run; choose another --out, each concept gets a run folder below it")
    model = load_base(base)
    if ranks is not None:
        try:
            layer_ranks(model.generator_ema, read_ranks(ranks))
        except ValueError as error:
            raise ValueError(f"rank file {ranks} does not fit the base {base}: {error}") from error
    names = _chosen(concepts, pairs, model.concepts)
    recipe, searches = _without_search(yaml.safe_load(config.read_text()))
    data = trained_data_of(base)
    options = [f"--data.{key}={json.dumps(data[key])}" for key in ("size", "crop_from", "split", "seed")]
    # one process a concept, whatever the config says; the user's own words come last and win
    options += ["--trainer.devices=1", "--trainer.strategy=auto", *(fit_options or [])]
    settings = {
        "base_sha256": weights_digest(model.generator_ema),
        "config": recipe,
        "options": options,
        "ranks": read_ranks(ranks) if ranks else "searched" if searches else "config",
    }
    all_settings = {name: {**settings, "pairs": _pairs_digest(pairs, name)} for name in names}
    for name in names:
        _check_settings(out / name, all_settings[name])
    out.mkdir(parents=True, exist_ok=True)
    plain = out / "adaptation.yaml"
    write_whole(plain, yaml.safe_dump(recipe, sort_keys=False).encode())

    def adapt(name: str, run: Command, with_config: Path, rank_file: Path | None) -> dict[str, Any]:
        folder = out / name
        if (folder / RESULT_FILE).exists():
            return _done_before(folder)
        folder.mkdir(exist_ok=True)
        write_whole(folder / SETTINGS_FILE, json.dumps(all_settings[name]).encode())
        start, resumed = time.monotonic(), (folder / "config.yaml").exists()
        if (folder / TRACE_FILE).exists():  # it was broken off in its own search or after it
            with_config, rank_file = config, None
        words = ["fit", f"-c={with_config}", f"--model.base={base}", f"--data.root={pairs}"]
        words += [f"--data.concepts=[{name}]", f"--trainer.default_root_dir={folder}"]
        # as a mapping, so that the run's config.yaml does not depend on the file
        words += [f"--model.ranks={json.dumps(read_ranks(rank_file))}"] if rank_file else []
        words += ["--ckpt_path=last"] if resumed else []
        try:
            run([*words, *options])
            finished_state(folder)
            run(["test", f"-c={folder}/config.yaml"])
        except Exception as error:  # whatever it is, the next concept may well succeed; the campaign fails at its end
            traceback.print_exc()
            return {"concept": name, "state": f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"}
        figures = last_figures(folder, "test")
        row = {
            "concept": name,
            "seconds": None if resumed else round(time.monotonic() - start, 1),  # those of the first start are lost
            "images": figures["images"],
            "bytes": adapter_bytes(folder),
            **figures,
        }
        write_whole(folder / RESULT_FILE, json.dumps(row).encode())
        return {**row, "state": "new"}

    def with_what_the_base_knew(row: dict[str, Any]) -> dict[str, Any]:
        known = row["concept"] in model.concepts
        return {**row, "state": f"{row['state']}, in the base's own mix"} if known else row

    row_of: dict[str, dict[str, Any]] = {}
    undone = [name for name in names if not (out / name / RESULT_FILE).exists()]
    if searches and ranks is None and undone:
        ranks = out / RANKS_FILE
        if not ranks.is_file():
            first = undone[0]
            row_of[first] = adapt(first, command, config, None)
            searched = out / first / RANKS_FILE
            if not searched.is_file():
                raise ValueError(f"the rank search on {first} {row_of[first]['state']}; start again to retry")
            write_whole(ranks, searched.read_bytes())
        print(f"ranks of {ranks} serve every concept that is still to come")  # noqa: T201
    rest = [name for name in names if name not in row_of]
    if devices == 1:
        row_of |= {name: adapt(name, command, plain, ranks) for name in rest}
    else:
        done = _side_by_side(rest, devices, out, lambda name, run: adapt(name, run, plain, ranks))
        row_of |= dict(zip(rest, done, strict=True))
    rows = [with_what_the_base_knew(row_of[name]) for name in names]
    others = sorted(file.parent.name for file in out.glob(f"*/{RESULT_FILE}") if file.parent.name not in row_of)
    earlier = [_done_before(out / name) for name in others]
    _report([*rows, *map(with_what_the_base_knew, earlier)], out / TABLE_FILE)
    failed = [str(row["concept"]) for row in rows if str(row["state"]).startswith("failed")]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} concepts failed ({', '.join(failed)}); start again to retry")
    return rows


def _without_search(recipe: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """A config's content without RankSearch among its callbacks, and whether it was there."""
    callbacks = recipe.get("trainer", {}).get("callbacks") or []
    kept = [callback for callback in callbacks if callback["class_path"].split(".")[-1] != "RankSearch"]
    return {**recipe, "trainer": {**recipe.get("trainer", {}), "callbacks": kept}}, len(kept) < len(callbacks)


def _done_before(folder: Path) -> dict[str, Any]:
    return {**json.loads((folder / RESULT_FILE).read_text()), "state": "done before"}


def _pairs_digest(pairs: Path, concept: str) -> str:
    """What tells a concept's pairs; other concepts of the set do not matter."""
    lines = sorted(pair.photo_sha256 + pair.edit_sha256 for pair in read_pairs(pairs) if pair.concept == concept)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _chosen(concepts: str, pairs: Path, known: list[str]) -> list[str]:
    if not (pairs / "manifest.json").is_file():
        raise FileNotFoundError(f"{pairs} is no pair set (manifest.json is missing); make one with `pocketgan predict`")
    held = sorted({pair.concept for pair in read_pairs(pairs)})
    if concepts == "all":
        names = [name for name in held if name not in known]
        if not names:
            raise ValueError(f"the base was trained on all concepts of {pairs}; name those to adapt to by --concepts")
        return names
    if Path(concepts).is_file():
        names = read_selection(Path(concepts))
    else:
        names = [name.strip() for name in concepts.strip("[]").split(",") if name.strip()]
    unknown = [name for name in names if name not in held]
    if unknown or not names:
        raise ValueError(f"unknown concept {', '.join(unknown) or '(none given)'}; {pairs} holds {', '.join(held)}")
    return list(dict.fromkeys(names))


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / SETTINGS_FILE
    if not (folder / "config.yaml").exists():
        return  # no training began, whatever was asked for
    if not file.is_file():
        raise ValueError(f"{folder} holds a run that no campaign made; choose another --out")
    found = json.loads(file.read_text())
    other = [name for name, value in settings.items() if found.get(name) != value]
    if "options" in other:
        now, then = set(settings["options"]), set(found["options"])
        changes = [", ".join(sorted(words)) or "none" for words in (then - now, now - then)]
        other[other.index("options")] = "options: {} then, {} now".format(*changes)
    if other:
        raise ValueError(
            f"{folder} was adapted with other settings ({'; '.join(other)}); choose another --out or delete it"
        )


def _side_by_side(
    names: list[str], devices: int, out: Path, adapt: Callable[[str, Command], dict[str, Any]]
) -> list[dict[str, Any]]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    given = list(map(str, range(devices))) if visible is None else visible.split(",")[:devices]
    free: queue.Queue[str] = queue.Queue()
    for device in given if len(given) == devices else [""] * devices:  # "": no GPU, processes alone
        free.put(device)
    threads = str(max((os.cpu_count() or 1) // devices, 1))

    def on_a_device(name: str) -> dict[str, Any]:
        device = free.get()
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "CUDA_VISIBLE_DEVICES": device}

        def run(words: list[str]) -> None:
            log = out / name / "log.txt"
            before = log.stat().st_size if log.exists() else 0
            with log.open("a") as stream:
                done = subprocess.run(
                    [sys.executable, "-m", "pocketgan", *words],
                    env=environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
            lines = log.read_bytes()[before:].decode(errors="replace").splitlines()
            for line in lines:
                if re.search(r"\.py:\d+: ", line):  # a warning, as Python and Lightning write it
                    print(f"{name}: {line}", file=sys.stderr)  # noqa: T201
            if done.returncode:
                raise RuntimeError(f"{lines[-1] if lines else done.returncode} (all of it: {log})")

        try:
            return adapt(name, run)
        finally:
            free.put(device)

    with ThreadPoolExecutor(devices) as pool:
        return list(pool.map(on_a_device, names))


def _report(rows: list[dict[str, Any]], file: Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns.append(columns.pop(columns.index("state")))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue().encode())
    shown = [
        name for name in columns if name in SHOWN or (name.startswith("kid") and not name.endswith(("_low", "_high")))
    ]
    table = Table(box=None)
    for name in shown:
        left = name in {"concept", "state"}
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name != "state")
    for row in rows:
        cells = ("" if row.get(name) is None else row[name] for name in shown)
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console().print(table)
    print(f"all figures: {file}")  # noqa: T201
