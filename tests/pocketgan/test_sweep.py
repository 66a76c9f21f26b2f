"""Sweeps: files, and the same file on this machine."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from checkpoints import assert_same, state
from filelock import FileLock
from tiny import CONFIGS, TINY_CONFIGS, fit_base

from pocketgan.cli import main
from pocketgan.local_sweep import run_local_sweep
from pocketgan.sweep import check_sweep, read_sweep

SHIPPED = sorted((CONFIGS / "sweeps").glob("*.yaml"))
UNIT = {"min": 0, "max": 1}
RATE = "model.init_args.generator_optimizer.init_args.lr"


def written(folder, pairs, **changes):
    """A sweep of the tiny base."""
    sweep = {
        "method": "grid",
        "metric": {"name": "val/reconstruction", "goal": "minimize"},
        "command": [
            "${env}", "pocketgan", "fit", "-c", str(TINY_CONFIGS / "base_gan" / "e2gan.yaml"), f"--data.root={pairs}",
            "${args}",
        ],
        "parameters": {RATE: {"values": [1e-3, 1e-4]}, "budget.images": {"values": [12]}},
        **changes,
    }  # fmt: skip
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in sweep.items() if value is not None}))
    return file


def table(out):
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_shipped_sweep_would_run(file, monkeypatch):
    """Keys exist and values parse; the command names files that there are."""
    monkeypatch.chdir(CONFIGS.parent)
    sweep = read_sweep(file)
    check_sweep(sweep, main)
    assert file.read_text().startswith("# ")
    assert [word for word in sweep.command if word.startswith("--trainer.default_root_dir=runs/sweeps/")]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_agents_own_command_line_parses(file, monkeypatch, capsys):
    """As W&B's agent writes it: the whole command, with ${args} as --k=v."""
    monkeypatch.chdir(CONFIGS.parent)
    raw = yaml.safe_load(file.read_text())
    values = [
        f"--{name}={given['values'][0] if 'values' in given else given['min']}"
        for name, given in raw["parameters"].items()
    ]
    words = []
    for word in raw["command"]:
        words += {"${env}": [], "${args}": values}.get(word, [word])
    assert words[0] == "pocketgan"
    with pytest.raises(SystemExit) as stop:
        main([*words[1:], "--print_config"])
    assert stop.value.code == 0


@pytest.mark.extended
def test_a_grid_is_tried_whole_and_starts_again_where_it_ended(pair_set, tmp_path, capsys):
    file, out = written(tmp_path, pair_set), tmp_path / "out"
    main(["sweep", str(file), "--local", "--trials=1", f"--out={out}"])
    assert len(table(out)) == 1
    first = (out / table(out)[0]["trial"] / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    main(["sweep", str(file), "--local", f"--out={out}"])
    rows = table(out)
    assert sorted(row[RATE] for row in rows) == ["0.0001", "0.001"]
    assert {row["state"] for row in rows} == {"done"}
    figures = [float(row["val/reconstruction"]) for row in rows]
    assert figures == sorted(figures)
    assert (out / "trials.png").stat().st_size > 1000
    assert (out / "trial_0000" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == first
    assert "best first" in capsys.readouterr().out
    # a trial is the run that its command line makes
    row = next(row for row in rows if row[RATE] == "0.001")
    plain = fit_base(pair_set, tmp_path / "plain", "--budget.images=12")
    assert_same(state(out / row["trial"]), state(plain))


@pytest.mark.extended
def test_a_killed_sweep_goes_on_with_the_trial_that_was_killed(pair_set, tmp_path):
    file, out = written(tmp_path, pair_set, parameters={RATE: {"values": [1e-3, 1e-4]}}), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "pocketgan", "sweep", str(file), "--local", f"--out={out}"], start_new_session=True
    )
    config = out / "trial_0000" / "config.yaml"
    end = time.monotonic() + 120
    while not config.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert config.exists()
    run_local_sweep(read_sweep(file), out, None, 1)
    assert sorted(row[RATE] for row in table(out)) == ["0.0001", "0.001"]
    assert {row["state"] for row in table(out)} == {"done"}
    assert "trial_0000" in {row["trial"] for row in table(out)}
    rate = next(row[RATE] for row in table(out) if row["trial"] == "trial_0000")
    plain = fit_base(pair_set, tmp_path / "plain", f"--model.generator_optimizer.lr={rate}")
    assert_same(state(out / "trial_0000"), state(plain))


@pytest.mark.extended
def test_what_the_user_broke_off_is_taken_up(pair_set, tmp_path, monkeypatch):
    sweep, out = read_sweep(written(tmp_path, pair_set)), tmp_path / "out"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pocketgan.local_sweep._Trial._follow", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_local_sweep(sweep, out, None, 1)
    run_local_sweep(sweep, out, None, 1)
    assert sorted(row[RATE] for row in table(out)) == ["0.0001", "0.001"]
    assert {row["state"] for row in table(out)} == {"done"}


def test_a_longer_search_draws_other_values(pair_set, tmp_path, monkeypatch):
    parameters = {RATE: {"min": 1e-5, "max": 1e-2}}
    sweep = read_sweep(written(tmp_path, pair_set, method="random", parameters=parameters))
    monkeypatch.setattr("pocketgan.local_sweep._Trial._follow", lambda *_: [1.0])
    monkeypatch.setattr("pocketgan.local_sweep._Trial._was_stopped", False, raising=False)
    for trials in (3, 6):
        study = run_local_sweep(sweep, tmp_path / "out", trials, 1)
    assert len({trial.params[RATE] for trial in study.trials}) == 6


@pytest.mark.extended
def test_ranges_are_drawn_and_bad_trials_end_early(pair_set, tmp_path):
    file = written(
        tmp_path,
        pair_set,
        method="random",
        run_cap=4,
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
        parameters={
            RATE: {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
            "model.init_args.reconstruction_weight": {"min": 5, "max": 50},
            "trainer.val_check_interval": {"value": 1},
        },
    )
    study = run_local_sweep(read_sweep(file), tmp_path / "out", None, 2)
    assert len(study.trials) == 4
    assert all(1e-5 <= trial.params[RATE] <= 1e-2 for trial in study.trials)
    assert all(isinstance(trial.params["model.init_args.reconstruction_weight"], int) for trial in study.trials)
    assert {row["state"] for row in table(tmp_path / "out")} <= {"done", "ended early"}
    assert "done" in {row["state"] for row in table(tmp_path / "out")}


@pytest.mark.extended
def test_failed_trials_are_named_and_the_others_go_on(pair_set, tmp_path):
    parameters = {"data.batch_size": {"values": [4, 4096]}, "budget.images": {"value": 12}}
    out = tmp_path / "out"
    run_local_sweep(read_sweep(written(tmp_path, pair_set, parameters=parameters)), out, None, 1)
    assert {row["data.batch_size"]: row["state"] for row in table(out)} == {"4": "done", "4096": "failed"}
    failed = next(row["trial"] for row in table(out) if row["state"] == "failed")
    assert "batch_size is 4096" in (out / failed / "log.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method is magic; give one of grid, random, bayes"),
        ({"metric": {"name": "a", "goal": "sideways"}}, "goal minimize or maximize"),
        ({"metric": None}, "is no sweep: it lacks metric"),
        ({"command": ["pocketgan", "fit"]}, r"ends with \$\{args\}"),
        ({"command": ["python", "train.py", "${args}"]}, "must run `pocketgan fit"),
        ({"command": ["pocketgan", "fit", "${json}", "${args}"]}, r"\$\{json\} in command is not supported"),
        ({"parameters": {RATE: {"min": 1.0, "max": 2.0}}}, "a grid needs values for each parameter"),
        ({"parameters": {RATE: {"min": 2, "max": 1}}, "method": "random"}, "goes from 2 to 1; give numbers, min below"),
        ({"parameters": {RATE: {"min": "1e-3", "max": 1}}, "method": "random"}, "1.0e-3, not 1e-3"),
        (
            {"parameters": {RATE: {"distribution": "log_uniform_values", **UNIT}}, "method": "bayes"},
            "above 0",
        ),
        (
            {"parameters": {RATE: {"distribution": "beta", **UNIT}}, "method": "bayes"},
            "has distribution beta",
        ),
        ({"parameters": {RATE: {"mu": 0}}}, "needs value, values, or min and max; it has mu"),
        ({"parameters": {RATE: 3}}, "needs value, values, or a distribution"),
        ({"parameters": {RATE: {"values": []}}}, "must be a list with something in it"),
        ({"early_termination": {"type": "hyperband"}}, "unknown early_termination; a sweep here has command"),
        ({"early_terminate": {"type": "envelope"}}, "needs type hyperband and min_iter"),
    ],
)
def test_files_that_are_refused(pair_set, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_sweep(written(tmp_path, pair_set, **changes))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model.init_args.colour": {"values": [1]}}, "model.init_args.colour = 1 is refused: .*colour"),
        ({"budget.images": {"values": [8, "many"]}}, "budget.images = many is refused: .*many"),
    ],
)
def test_keys_and_values_are_tried_before_any_training(pair_set, tmp_path, parameters, message):
    file = written(tmp_path, pair_set, parameters=parameters)
    with pytest.raises(SystemExit, match=message):
        main(["sweep", str(file), "--local", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_folders_that_are_taken(pair_set, tmp_path):
    sweep, out = read_sweep(written(tmp_path, pair_set)), tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(RuntimeError, match="another process sweeps in"):
        run_local_sweep(sweep, out, 1, 1)
    (out / "sweep.yaml").write_text("method: random")
    with pytest.raises(ValueError, match="holds another sweep, or this one as it was before"):
        run_local_sweep(sweep, out, 1, 1)
    with pytest.raises(ValueError, match="jobs is 0"):
        run_local_sweep(sweep, out, 1, 0)
    with pytest.raises(SystemExit, match="does not exist; give a YAML such as"):
        main(["sweep", str(tmp_path / "none.yaml"), "--local"])


def test_a_sweep_online_needs_a_key(pair_set, tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda **_: False)
    with pytest.raises(SystemExit, match="needs its key: run `wandb login` or set WANDB_API_KEY; --local"):
        main(["sweep", str(written(tmp_path, pair_set))])


def test_a_sweep_online_is_registered_and_has_an_agent(pair_set, tmp_path, monkeypatch, capsys):
    asked = {}

    def register(raw, entity, project):
        asked["sweep"] = (raw["method"], entity, project)
        return "abc"

    def agent(words, check):
        asked["agent"] = words[1:]
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.setattr("wandb.sweep", register)
    monkeypatch.setattr("pocketgan.wandb_sweep.subprocess.run", agent)
    main(["sweep", str(written(tmp_path, pair_set)), "--entity=team", "--trials=3"])
    assert asked["sweep"] == ("grid", "team", "pocketgan")
    assert asked["agent"] == ["-m", "wandb", "agent", "--count", "3", "team/pocketgan/abc"]
    assert "wandb agent team/pocketgan/abc" in capsys.readouterr().out


def test_each_run_of_an_agent_has_a_folder_of_its_own(pair_set, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "first")
    monkeypatch.setattr("wandb.login", lambda **_: False)
    with pytest.raises(ValueError, match="finds no key"):
        fit_base(pair_set, tmp_path / "runs")
    begun = []
    monkeypatch.setattr("callbacks.RunLoggers.loggers", lambda self, run: begun.append(run) or [])
    monkeypatch.setattr("callbacks.RunLoggers.check", lambda self: None)
    fit_base(pair_set, tmp_path / "runs", "--budget.images=4", "--trainer.logger=false")
    assert (tmp_path / "runs" / "first" / "config.yaml").is_file()
