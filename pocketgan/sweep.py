"""A sweep's file, which W&B's agents run as it is, and the command lines that it stands for."""

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

METHODS = ("grid", "random", "bayes")
DISTRIBUTIONS = (
    "constant", "categorical", "uniform", "int_uniform", "log_uniform_values", "q_uniform",
)  # fmt: skip
KEYS = {"method", "metric", "parameters", "command", "run_cap", "early_terminate", "name", "description", "program"}
MACROS = ("${env}", "${interpreter}", "${program}")


@dataclass(frozen=True)
class SweepParameter:
    """What one config path may be.

    Attributes:
        name: Config path.
        distribution: One of ``DISTRIBUTIONS``.
        values: Of a categorical or constant one.
        low: Smallest value of the others.
        high: Largest.
        step: Of quantised ones.
    """

    name: str
    distribution: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None

    @property
    def examples(self) -> tuple[Any, ...]:
        """All values, or both ends."""
        return self.values or (self.low, self.high)


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, read and looked through.

    Attributes:
        file: Where it stands.
        method: How values are chosen.
        metric: What is measured.
        goal: Whether it is to be small or large.
        command: Words of `pocketgan`, the trial's own left out.
        parameters: What varies.
        run_cap: How many runs at most, where the file says so.
        min_iter: Of hyperband, values of the metric before a run may end early; None where none does.
        eta: Of hyperband: one run of so many goes on.
        raw: The whole file.
    """

    file: Path
    method: Literal["grid", "random", "bayes"]
    metric: str
    goal: Literal["minimize", "maximize"]
    command: tuple[str, ...]
    parameters: tuple[SweepParameter, ...]
    run_cap: int | None
    min_iter: int | None
    eta: int
    raw: dict[str, Any]

    def words(self, values: dict[str, Any]) -> list[str]:
        """The command line of `pocketgan` for a trial's values, as W&B's agent makes it of ``${args}``."""
        return [*self.command, *(f"--{name}={value}" for name, value in values.items())]


def read_sweep(file: Path) -> Sweep:
    """Read a sweep's file and refuse what neither W&B nor a local sweep would run.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A key or value of it makes no sense; the message names it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"sweep {file} does not exist; give a YAML such as configs/sweeps/base_gan.yaml")
    raw = yaml.safe_load(file.read_text())
    if not isinstance(raw, dict):
        raise ValueError(f"{file} is no sweep: it needs method, metric, command and parameters")
    if unknown := sorted(raw.keys() - KEYS):
        raise ValueError(f"{file}: unknown {', '.join(unknown)}; a sweep here has {', '.join(sorted(KEYS))}")
    if missing := sorted({"method", "metric", "parameters", "command"} - raw.keys()):
        raise ValueError(f"{file} is no sweep: it lacks {', '.join(missing)}")
    if raw["method"] not in METHODS:
        raise ValueError(f"{file}: method is {raw['method']}; give one of {', '.join(METHODS)}")
    metric = raw["metric"]
    goal = metric.get("goal", "minimize") if isinstance(metric, dict) else None
    if not isinstance(metric, dict) or "name" not in metric or goal not in {"minimize", "maximize"}:
        raise ValueError(f"{file}: metric needs a name such as val/reconstruction, and goal minimize or maximize")
    parameters = tuple(_parameter(file, name, given) for name, given in raw["parameters"].items())
    if raw["method"] == "grid" and not all(parameter.values for parameter in parameters):
        endless = next(parameter.name for parameter in parameters if not parameter.values)
        raise ValueError(f"{file}: a grid needs values for each parameter, {endless} has a range; list its values")
    early = raw.get("early_terminate") or {}
    if early and (early.get("type") != "hyperband" or "min_iter" not in early):
        raise ValueError(f"{file}: early_terminate needs type hyperband and min_iter; leave it out to end no run early")
    return Sweep(
        file,
        raw["method"],
        metric["name"],
        goal,
        _command(file, raw["command"]),
        parameters,
        raw.get("run_cap"),
        early.get("min_iter"),
        early.get("eta", 3),
        raw,
    )


def _parameter(file: Path, name: str, given: Any) -> SweepParameter:
    if not isinstance(given, dict):
        raise ValueError(f"{file}: {name} needs value, values, or a distribution with min and max")
    if "value" in given:
        return SweepParameter(name, "constant", (given["value"],))
    if "values" in given:
        if not isinstance(given["values"], list) or not given["values"]:
            raise ValueError(f"{file}: values of {name} must be a list with something in it")
        if "probabilities" in given:
            raise ValueError(f"{file}: probabilities of {name} are not supported; leave them out")
        return SweepParameter(name, "categorical", tuple(given["values"]))
    supported = DISTRIBUTIONS[2:]
    if given.get("distribution", supported[0]) not in supported:
        raise ValueError(
            f"{file}: {name} has distribution {given['distribution']}; supported are {', '.join(supported)}"
        )
    if not {"min", "max"} <= given.keys():
        found = ", ".join(given) or "nothing"
        raise ValueError(f"{file}: {name} needs value, values, or min and max; it has {found}")
    low, high = given["min"], given["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = given.get("distribution", "int_uniform" if whole else "uniform")
    if not all(isinstance(end, int | float) for end in (low, high)) or low >= high:
        raise ValueError(f"{file}: {name} goes from {low} to {high}; give numbers, min below max (1.0e-3, not 1e-3)")
    if "log" in distribution and low <= 0:
        raise ValueError(f"{file}: {name} is logarithmic from {low}; give a min above 0")
    step = given.get("q", 1.0) if distribution.startswith("q_") else None
    return SweepParameter(name, distribution, (), low, high, step)


def _command(file: Path, command: Any) -> tuple[str, ...]:
    if not isinstance(command, list) or "${args}" not in command:
        raise ValueError(f"{file}: command must be a list of words that ends with ${{args}}")
    words = [str(word) for word in command if word not in MACROS]
    for start in (["pocketgan"], ["python", "-m", "pocketgan"], ["-m", "pocketgan"]):
        if words[: len(start)] == start and words[len(start) :][:1] == ["fit"]:
            words = words[len(start) :]
            break
    else:
        raise ValueError(f"{file}: command must run `pocketgan fit -c …`, it is {' '.join(map(str, command))}")
    words.remove("${args}")
    strange = [word for word in words if re.search(r"\$\{(?!oc\.)", word)]
    if strange:
        raise ValueError(f"{file}: {strange[0]} in command is not supported; use ${{env}} and ${{args}}")
    return tuple(words)


def check_sweep(sweep: Sweep, command: Callable[[list[str]], None]) -> None:
    """Parse the command lines that an agent would run: keys exist, values are of their types. Nothing is trained.

    Each parameter's values, or the ends of its range, stand once beside the others' first.

    Args:
        sweep: The sweep.
        command: Runs one pocketgan command line, given without the program's name.

    Raises:
        ValueError: A command line is refused; the message has the parameter, the value and the reason.
    """
    first = {parameter.name: parameter.examples[0] for parameter in sweep.parameters}
    for parameter in sweep.parameters:
        for value in parameter.examples:
            _check_line(sweep, command, parameter.name, {**first, parameter.name: value})


def _check_line(sweep: Sweep, command: Callable[[list[str]], None], name: str, values: dict[str, Any]) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            command([*sweep.words(values), "--print_config"])
    except SystemExit as left:
        if left.code:
            told = " ".join(said.getvalue().rpartition("error:")[2].split())
            raise ValueError(f"{sweep.file}: {name} = {values[name]} is refused: {told[:500]}") from left
