"""Where figures go, and that they stop nothing."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from tiny import fit_adapter, fit_base

from callbacks import MetricsCSV, RunLoggers, WandbRunLogger
from callbacks.wandb_run_logger import run_id
from pocketgan.cli import main


def offline_runs(run):
    return sorted((run / "wandb").glob("offline-run-*"))


@pytest.fixture(scope="module")
def logged(tmp_path_factory, trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        run = tmp_path_factory.mktemp("logged") / "run"
        words = ("--logging.wandb=offline", "--logging.tensorboard=true", "--budget.images=12")
        return fit_base(trained["pairs"], run, *words)


def test_offline_needs_no_account_and_stays_in_the_run_folder(logged, tmp_path):
    assert len(offline_runs(logged)) == 1
    noted = json.loads((logged / "wandb.json").read_text())
    assert noted["mode"] == "offline"
    assert noted["project"] == "pocketgan"
    assert noted["id"] in offline_runs(logged)[0].name
    assert list((logged / "tensorboard").glob("events.*"))
    assert not (tmp_path / "wandb").exists()


def test_pictures_are_beside_the_figures(logged):
    assert list(offline_runs(logged)[0].glob("files/media/images/samples_*.png"))
    with Image.open(logged / "samples" / "images_00000012.png") as sheet:
        assert sheet.width > 3 * 32


def test_the_environment_is_noted(logged, trained):
    made_with = json.loads((logged / "environment.json").read_text())
    assert made_with["environment"]["packages"]["torch"]
    assert made_with["environment"]["cores"] >= 1
    assert len(made_with["pair_set"]) == 64
    assert yaml.safe_load((logged / "hparams.yaml").read_text())["pair_set"] == made_with["pair_set"]


def test_a_run_folder_keeps_its_id(logged, tmp_path, monkeypatch):
    identity = json.loads((logged / "wandb.json").read_text())["id"]
    assert run_id(logged) == identity
    assert run_id(tmp_path) != run_id(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "of-an-agent")
    assert run_id(logged) == "of-an-agent"


def test_online_without_a_key_says_what_to_do_before_training(pair_set, tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda **_: False)
    with pytest.raises(ValueError, match="finds no key of Weights & Biases: run `wandb login`, set WANDB_API_KEY, or"):
        fit_base(pair_set, tmp_path / "run", "--logging.wandb=online")
    assert not (tmp_path / "run").exists()


def test_a_sweeps_agent_makes_it_online(monkeypatch):
    assert RunLoggers().wandb == "off"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert RunLoggers().wandb == "online"


def test_an_outage_is_a_warning(tmp_path, monkeypatch):
    import wandb

    begin = wandb.init

    def unreachable(*args, **kwargs):
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("no network")
        return begin(*args, **kwargs)

    monkeypatch.setattr(wandb, "init", unreachable)
    logger = WandbRunLogger(tmp_path / "run", "online", {"project": "tests"})
    with pytest.warns(UserWarning, match="start online failed|send it later") as told:
        logger.log_metrics({"images": 1.0}, 1)
    words = " ".join(str(each.message) for each in told)
    assert "start online failed, the training goes on without it: CommError: no network" in words
    assert "send it later with `wandb sync" in words
    logger.finalize("success")
    assert json.loads((tmp_path / "run" / "wandb.json").read_text())["mode"] == "offline"


def test_a_run_in_progress_stays_whose_it_is(tmp_path):
    import wandb

    theirs = wandb.init(mode="offline", dir=tmp_path, project="theirs")
    try:
        logger = WandbRunLogger(tmp_path / "run", "offline", {"project": "tests"})
        logger.log_metrics({"images": 1.0}, 1)
        logger.finalize("success")
        assert json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] != theirs.id
        assert wandb.run is theirs
    finally:
        wandb.finish()


def test_whatever_a_logger_raises_is_one_warning(tmp_path, monkeypatch):
    logger = MetricsCSV(tmp_path / "run")

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger.log_metrics", full_disk)
    with pytest.warns(UserWarning, match="MetricsCSV.log_metrics failed, the training goes on without it: OSError: No"):
        logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 1.0}, 2)


def test_tensorboard_that_is_not_there(monkeypatch):
    monkeypatch.setattr("callbacks.run_loggers.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        RunLoggers(tensorboard=True).check()


def test_a_run_gives_its_config_back(logged, tmp_path, capsys):
    main(["config", f"--from-run={logged}"])
    assert capsys.readouterr().out == (logged / "config.yaml").read_text()
    main(["config", f"--from-run={logged}", f"--out={tmp_path / 'again.yaml'}"])
    again = ["fit", f"-c={tmp_path / 'again.yaml'}", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        main(again)
    assert stop.value.code == 0
    with pytest.raises(SystemExit, match="exists; choose another --out"):
        main(["config", f"--from-run={logged}", f"--out={tmp_path / 'again.yaml'}"])


def test_a_config_at_weights_and_biases(monkeypatch, tmp_path, capsys):
    class Api:
        def run(self, path):
            assert path == "team/pocketgan/abc"
            return type("Run", (), {"config": {"model": {"class_path": "BaseGAN"}, "environment": {}, "pair_set": "x"}})

    monkeypatch.setattr("wandb.Api", Api)
    main(["config", "--from-run=team/pocketgan/abc"])
    assert yaml.safe_load(capsys.readouterr().out) == {"model": {"class_path": "BaseGAN"}}


def test_what_is_no_run(tmp_path):
    with pytest.raises(SystemExit, match="is neither a run folder"):
        main(["config", f"--from-run={tmp_path}"])
    with pytest.raises(SystemExit, match="is neither a run folder"):
        main(["config", "--from-run=nothing"])


class Recorded:
    """A run of Weights & Biases that notes its artifacts."""

    def __init__(self, offline):
        self.id, self.offline, self.used, self.made = "me", offline, [], []

    def use_artifact(self, artifact):
        self.used.append(getattr(artifact, "name", artifact))

    def log_artifact(self, artifact):
        self.made.append((artifact.name, artifact.type, artifact.metadata, sorted(artifact.manifest.entries)))


@pytest.mark.parametrize("offline", [False, True])
def test_artifacts_say_what_was_made_of_what(trained, tmp_path, monkeypatch, offline):
    run, base = Recorded(offline), Path(shutil.copytree(trained["base"], tmp_path / "base"))
    noted = {"id": "its-base", "project": "pocketgan", "entity": "team", "mode": "online"}
    (base / "wandb.json").write_text(json.dumps(noted))
    monkeypatch.setattr(WandbRunLogger, "_begin", lambda self: setattr(self, "_experiment", run) or run)
    monkeypatch.setattr(WandbRunLogger, "_note", lambda *_: None)
    for name in ("log_metrics", "log_hyperparams", "log_pictures", "finalize"):
        monkeypatch.setattr(WandbRunLogger, name, lambda *_, **__: None)
    fit_adapter(
        trained["pairs"], base, tmp_path / "run", "--data.concepts=[sepia]", "--logging.wandb=offline",
        '--trainer.callbacks=[{"class_path": "AdapterWriter"}]',
    )  # fmt: skip
    pairs = next(name for name in [*run.used, *(made[0] for made in run.made)] if name.startswith("pairs-"))
    *_, (name, kind, metadata, files) = run.made
    assert (name, kind) == ("run-me", "adapter")
    assert metadata == {"made_from": [pairs, "run-its-base"], "images": 24}
    assert {"config.yaml", "adapter/adapter_model.safetensors"} <= set(files)
    assert run.used == ([] if offline else [pairs, "team/pocketgan/run-its-base:latest"])


@pytest.mark.extended
def test_an_export_is_recorded_where_its_run_is(trained, tmp_path, monkeypatch):
    begun = []

    def init(**settings):
        begun.append(settings["id"])
        raise OSError("no network")

    monkeypatch.setattr("wandb.init", init)
    run = Path(shutil.copytree(trained["base"], tmp_path / "run"))
    for mode, message in (("offline", None), ("online", "not recorded at Weights & Biases: no network")):
        noted = {"id": "me", "project": "pocketgan", "entity": None, "mode": mode}
        (run / "wandb.json").write_text(json.dumps(noted))
        with pytest.warns(UserWarning, match=message) if message else nullcontext():
            main(["export", str(run), f"--out={tmp_path / mode}", "--concept=inverted"])
        assert (tmp_path / mode / "inverted.onnx").is_file()
    assert begun == ["me"]


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["package", "pack"])
def test_an_export_is_recorded_with_its_card(trained, tmp_path, monkeypatch, kind):
    run = Path(shutil.copytree(trained["base"], tmp_path / "run"))
    (run / "wandb.json").write_text(json.dumps({"id": "me", "project": "p", "entity": None, "mode": "online"}))
    made, used = [], []
    logged = SimpleNamespace(use_artifact=used.append, log_artifact=made.append)
    monkeypatch.setattr("wandb.init", lambda **_: nullcontext(logged))
    words = {"package": ["--target=coreml"], "pack": [f"--adapters={trained['adapter']}"]}[kind]
    main(["export", str(run), f"--out={tmp_path / 'out'}", *words])
    assert used == ["run-me:latest"]
    (artifact,) = made
    names = set(artifact.manifest.entries)
    assert {"model_card.md", "SHA256SUMS"} < names
    if kind == "package":
        assert {"inverted.mlpackage/Manifest.json", "inverted.mlpackage.json"} < names
        assert artifact.metadata["concept"] == "inverted"
    else:
        files = ["inverted.safetensors", "sepia.safetensors"]
        assert {"pack.json", "base.onnx", "base.weights", *files, *(f"{name}.json" for name in files)} < names
        assert list(artifact.metadata) == files
