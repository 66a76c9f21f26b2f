"""A sweep on this machine, with no account: the same file, tried by Optuna."""

import csv
import itertools
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from pocketgan.files import write_whole
from pocketgan.sweep import Sweep, SweepParameter

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

TABLE_FILE, PLOT_FILE, JOURNAL_FILE, SWEEP_FILE = "trials.csv", "trials.png", "trials.journal", "sweep.yaml"
DEFAULT_TRIALS = 20
POLL_SECONDS, PATIENCE_SECONDS = 0.5, 30.0


def run_local_sweep(sweep: Sweep, out: Path, trials: int | None, jobs: int, seed: int = 0) -> "Study":
    """Try values until there are as many trials as asked for; a sweep that was broken off goes on.

    Each trial is a `pocketgan fit` of its own in ``out/trial_0003``; `bayes` is Optuna's tree-structured Parzen
    estimator, hyperband its successive halving with the file's ``min_iter`` and ``eta``, both counting values of the
    metric. A trial whose process was killed goes on from its last checkpoint.

    Args:
        sweep: The file.
        out: Gets the trials' run folders, ``trials.csv`` and ``trials.png``.
        trials: How many in all, those before included; the whole grid, the file's ``run_cap``, or 20 if None.
        jobs: Trials at a time; each has a GPU of its own where there are some, else a share of the cores.
        seed: Of the choice of values.

    Returns:
        Optuna's study.

    Raises:
        ImportError: Optuna is not installed.
        RuntimeError: Another process sweeps in ``out``; every trial failed.
        ValueError: A number makes no sense, or ``out`` holds another sweep.
    """
    if jobs < 1 or (trials is not None and trials < 1):
        raise ValueError(f"jobs is {jobs}, trials {trials}; give 1 or more")
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ImportError("a local sweep needs Optuna: `pip install 'pocketgan[sweep]'`") from error
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(f"another process sweeps in {out}; wait for it, or choose another --out") from error
    try:
        _claim(sweep, out)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(out / JOURNAL_FILE)))
        study = optuna.create_study(
            storage=storage, study_name="sweep", load_if_exists=True, direction=sweep.goal, pruner=_pruner(sweep)
        )
        _take_up_broken_off(study)
        # other draws than those of the starts before
        study.sampler = _sampler(sweep, seed + len(study.trials))
        combinations = _enqueue_grid(sweep, study) if sweep.method == "grid" else None
        wanted = trials or sweep.run_cap or combinations or DEFAULT_TRIALS
        if combinations is not None:
            wanted = min(wanted, combinations)
        slots: queue.Queue[int] = queue.Queue()
        for slot in range(jobs):
            slots.put(slot)
        missing = wanted - sum(trial.state.is_finished() for trial in _own_trials(study))
        if missing > 0:
            study.optimize(
                lambda trial: _Trial(sweep, out, slots, jobs).run(trial), n_trials=missing, n_jobs=jobs,
                catch=(_TrialFailedError,),
            )  # fmt: skip
        if not any(trial.value is not None for trial in study.trials):
            raise RuntimeError(f"no trial of {sweep.file} came to a {sweep.metric}; see {out}/trial_*/log.txt")
        _report(sweep, study, out)
    finally:
        lock.release()
    return study


class _TrialFailedError(Exception):
    """A trial's process ended badly or logged no such metric."""


class _Trial:
    """One training, followed by its metrics.csv."""

    def __init__(self, sweep: Sweep, out: Path, slots: "queue.Queue[int]", jobs: int) -> None:
        self.sweep, self.out, self.slots, self.jobs = sweep, out, slots, jobs

    def run(self, trial: "Trial") -> float:
        import optuna

        values = {parameter.name: _suggested(trial, parameter) for parameter in self.sweep.parameters}
        name = trial.user_attrs.get("folder", f"trial_{trial.number:04d}")
        trial.set_user_attr("folder", name)
        folder = self.out / name
        folder.mkdir(exist_ok=True)
        words = self.sweep.words(values)
        words += [f"--trainer.default_root_dir={folder}", "--logging.wandb=off", "--trainer.enable_progress_bar=false"]
        words += ["--ckpt_path=last"]
        Console().print(f"{folder}: {_shown(values)}", highlight=False)
        slot = self.slots.get()
        try:
            reported = self._follow(trial, words, folder, slot)
        except BaseException as error:
            if not isinstance(error, _TrialFailedError):  # by the user or the machine: the next start takes it up
                trial.set_user_attr("interrupted", True)
            raise
        finally:
            self.slots.put(slot)
        if not reported:
            logged = _figures_of(folder / "metrics.csv")
            there = f", but {', '.join(logged)}" if logged else ""
            Console().print(f"{folder} logged no {self.sweep.metric}{there}; see {folder}/log.txt", highlight=False)
            raise _TrialFailedError
        if self._was_stopped:
            raise optuna.TrialPruned
        return reported[-1]

    def _follow(self, trial: "Trial", words: list[str], folder: Path, slot: int) -> list[float]:
        self._was_stopped = False
        reported: list[float] = []
        with FileLock(folder / ".lock"):
            pass  # a trial that outlived a killed sweep comes to its end first
        with (folder / "log.txt").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pocketgan", *words], stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | _share_of_machine(slot, self.jobs),
            )  # fmt: skip
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    reported = self._report_new(trial, folder, reported)
                    if self.sweep.min_iter is not None and reported and trial.should_prune():
                        self._was_stopped = True
                        break
            finally:
                _end(process)
        reported = self._report_new(trial, folder, reported)
        if process.returncode < 0 or process.returncode == os.EX_TEMPFAIL:  # to be started again
            trial.set_user_attr("interrupted", not self._was_stopped)
        if process.returncode and not self._was_stopped:
            raise _TrialFailedError(f"{folder} ended with {process.returncode}; see {folder}/log.txt")
        return reported

    def _report_new(self, trial: "Trial", folder: Path, reported: list[float]) -> list[float]:
        found = _values_of(folder / "metrics.csv", self.sweep.metric)
        for step in range(len(reported), len(found)):
            trial.report(found[step], step + 1)
        return found


def _figures_of(file: Path) -> list[str]:
    """What a run has measured on validation photos."""
    names = file.read_text().partition("\n")[0].split(",") if file.is_file() else []
    return sorted(name for name in names if name.startswith("val/"))


def _values_of(file: Path, metric: str) -> list[float]:
    if not file.is_file():
        return []
    # a row that is being written has no end yet
    whole = file.read_text().rpartition("\n")[0].splitlines()
    return [float(row[metric]) for row in csv.DictReader(whole) if row.get(metric) and None not in row.values()]


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _share_of_machine(slot: int, jobs: int) -> dict[str, str]:
    """Environment of a job: a GPU of its own where there are some, else its share of the cores."""
    import torch

    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = list(map(str, range(gpus))) if visible is None else visible.split(",")
        return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}
    return {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // jobs, 1))} if jobs > 1 else {}


def _suggested(trial: "Trial", parameter: SweepParameter) -> Any:
    # Optuna keeps plain values alone: others are chosen by their place
    name, low, high = parameter.name, parameter.low, parameter.high
    if parameter.values:
        return parameter.values[trial.suggest_categorical(name, list(range(len(parameter.values))))]
    if parameter.distribution == "int_uniform":
        return trial.suggest_int(name, int(low), int(high))
    return trial.suggest_float(name, low, high, step=parameter.step, log=parameter.distribution == "log_uniform_values")


def _sampler(sweep: Sweep, seed: int) -> Any:
    from optuna.samplers import RandomSampler, TPESampler

    # a grid is queued whole
    return TPESampler(seed=seed) if sweep.method == "bayes" else RandomSampler(seed=seed)


def _pruner(sweep: Sweep) -> Any:
    from optuna.pruners import NopPruner, SuccessiveHalvingPruner

    if sweep.min_iter is None:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=sweep.min_iter, reduction_factor=sweep.eta)


def _claim(sweep: Sweep, out: Path) -> None:
    file, text = out / SWEEP_FILE, yaml.safe_dump(sweep.raw, sort_keys=False)
    if file.is_file() and file.read_text() != text:
        raise ValueError(f"{out} holds another sweep, or this one as it was before; choose another --out")
    write_whole(file, text.encode())


def _own_trials(study: "Study") -> "list[FrozenTrial]":
    """Trials but those that were broken off, which have a second number."""
    broken_off = study.user_attrs.get("broken_off", [])
    return [trial for trial in study.trials if trial.number not in broken_off]


def _take_up_broken_off(study: "Study") -> None:
    """Queue the trials of a killed sweep again, each for its own folder."""
    from optuna.trial import TrialState

    known = study.user_attrs.get("broken_off", [])
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
        is_running = trial.state == TrialState.RUNNING
        if trial.number in known or not (is_running or trial.user_attrs.get("interrupted")):
            continue
        known = [*known, trial.number]
        study.set_user_attr("broken_off", known)
        if is_running:
            study.tell(trial.number, state=TrialState.FAIL)
        kept = {"folder": trial.user_attrs["folder"]} if "folder" in trial.user_attrs else {}
        study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params}, user_attrs=kept)


def _enqueue_grid(sweep: Sweep, study: "Study") -> int:
    """Queue every combination that is not there yet; how many there are."""
    places = [range(len(parameter.values)) for parameter in sweep.parameters]
    names = [parameter.name for parameter in sweep.parameters]
    combinations = list(itertools.product(*places))
    for chosen in combinations:
        study.enqueue_trial(dict(zip(names, chosen, strict=True)), skip_if_exists=True)
    return len(combinations)


def _report(sweep: Sweep, study: "Study", out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trials = [trial for trial in _own_trials(study) if "folder" in trial.user_attrs]
    best_first = sorted(
        trials,
        key=lambda trial: (
            trial.state.name != "COMPLETE",
            trial.value is None,
            (trial.value or 0.0) * (1 if sweep.goal == "minimize" else -1),
        ),
    )
    names = [parameter.name for parameter in sweep.parameters]
    short = _short(names)
    rows: list[list[Any]] = []
    shown: list[list[str]] = []
    for trial in best_first:
        values = [_value(parameter, trial.params.get(parameter.name)) for parameter in sweep.parameters]
        ending = {"COMPLETE": "done", "PRUNED": "ended early", "FAIL": "failed"}.get(trial.state.name, trial.state.name)
        shown.append([_cell(value) for value in values])
        rows.append([trial.user_attrs["folder"], ending, "" if trial.value is None else f"{trial.value:.5g}", *values])
    with (out / TABLE_FILE).open("w", newline="") as file:
        csv.writer(file).writerows([["trial", "state", sweep.metric, *names], *rows])
    table = Table(*("trial", "state", sweep.metric, *short), title=f"{sweep.file.name}: best first")
    for row, values in zip(rows, shown, strict=True):
        table.add_row(*map(str, row[:3]), *values)
    Console().print(table)
    measured = [trial for trial in trials if trial.value is not None]
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.2 * len(names), 3), squeeze=False, sharey=True)
    for axis, parameter, title in zip(axes[0], sweep.parameters, short, strict=True):
        for state, marker in (("COMPLETE", "o"), ("PRUNED", "x")):
            of_state = [trial for trial in measured if trial.state.name == state]
            axis.scatter(
                [_plotted(parameter, trial.params[parameter.name]) for trial in of_state],
                [trial.value for trial in of_state], marker=marker, label="done" if marker == "o" else "ended early",
            )  # fmt: skip
        axis.set_xlabel(title, fontsize=7)
        if "log" in parameter.distribution:
            axis.set_xscale("log")
    axes[0][0].set_ylabel(sweep.metric)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / PLOT_FILE, dpi=120)
    pyplot.close(figure)
    Console().print(f"{out / TABLE_FILE} and {out / PLOT_FILE} are written", highlight=False)


def _short(names: Sequence[str]) -> list[str]:
    """The last parts of config paths, as many as tell them apart."""
    parts = [name.replace("init_args.", "").split(".") for name in names]
    for count in range(1, max(map(len, parts), default=0) + 1):
        short = [".".join(one[-count:]) for one in parts]
        if len(set(short)) == len(short):
            return short
    return list(names)


def _shown(values: Mapping[str, Any]) -> str:
    short = _short(list(values))
    return ", ".join(f"{name} {_cell(value)}" for name, value in zip(short, values.values(), strict=True))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(parameter: SweepParameter, stored: Any) -> Any:
    return parameter.values[stored] if parameter.values and stored is not None else stored


def _plotted(parameter: SweepParameter, stored: Any) -> Any:
    return str(_value(parameter, stored)) if parameter.values else stored
