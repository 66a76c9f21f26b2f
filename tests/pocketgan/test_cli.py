"""The command line: help, the run folder, export, edit, refusals."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from PIL import Image
from tiny import CONFIGS, TINY_CONFIGS, config_of, fit_adapter, fit_base, real_photos
from tiny_gan import make_image_folder
from tiny_text_encoder import make_text_encoder

from lightning_modules import LoRAAdaptation, load_run, load_unpaired_run
from pocketgan import cli
from pocketgan.cli import main
from pocketgan.images import to_image
from pocketgan.losses import L1Loss, LeastSquaresLoss
from pocketgan.metrics import EditQuality


def test_help_lists_every_command_without_torch():
    script = (
        "import sys; from pocketgan.cli import main; main(['--help']); "
        "print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for command in (*cli.LIGHTNING_COMMANDS, *cli.COMMANDS):
        assert f"\n  {command} " in shown
    assert shown.endswith("[]\n")


def test_module_and_script_are_the_same():
    shown = [
        subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout
        for words in (
            ["-m", "pocketgan", "--help"],
            ["-c", "from pocketgan.cli import main; main()", "--help"],
        )
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_function_commands_explain_themselves(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert ("--port" if command == "serve" else "--out") in capsys.readouterr().out


def test_unknown_command():
    with pytest.raises(SystemExit, match="paint is no command"):
        main(["paint"])


def shipped(folder):
    return sorted(path for path in folder.rglob("*.yaml") if path.parent.name not in {"prompts", "sweeps"})


@pytest.mark.parametrize(
    "config", [*shipped(CONFIGS), *shipped(TINY_CONFIGS)], ids=lambda path: "/".join(path.parts[-4:])
)
def test_every_config_parses(config, capsys):
    assert config.read_text().startswith("# ")
    command = "predict" if config.parent.name == "synthesize" else "fit"
    with pytest.raises(SystemExit) as stop:
        main([command, f"-c={config}", "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert not re.search(r"[\s\"'=:]/\w", config.read_text()), "a path of one machine"
    assert printed["trainer"]["default_root_dir"]


def test_interpolation_follows_a_later_value(capsys):
    """jsonargparse's experimental omegaconf+ mode: plain omegaconf leaves the old number in place."""
    config = TINY_CONFIGS / "base_gan" / "e2gan.yaml"
    with pytest.raises(SystemExit):
        main(["fit", f"-c={config}", "--model.generator.token_size=24", "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["text_encoder"]["init_args"]["token_size"] == 24


@pytest.mark.parametrize("variant", ["base", "adapter"])
def test_run_folder_is_complete(trained, variant):
    run = trained[variant]
    config = config_of(run)
    assert config["trainer"]["default_root_dir"] == str(run)
    assert config["budget"]["images"] == 24
    assert (run / "checkpoints" / "last.ckpt").is_file()
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {
        "images",
        "train/reconstruction",
        "val/reconstruction",
        "val/kid_lite0",
        "val/images_per_concept",
    } <= set(header.split(","))
    assert rows
    assert yaml.safe_load((run / "hparams.yaml").read_text())["model"] == config["model"]


@pytest.mark.parametrize("variant", ["base", "adapter"])
@pytest.mark.parametrize("command", ["validate", "test"])
def test_validate_and_test_measure_the_trained_weights(trained, variant, command, capsys):
    run = trained[variant]
    main([command, f"-c={run / 'config.yaml'}"])
    stage = "val" if command == "validate" else "test"
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    names = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    figures = {name: value for name, value in zip(names, last, strict=True) if value and name.startswith(stage)}
    assert {f"{stage}/{name}" for name in ("reconstruction", "psnr", "ssim", "fd_lite0", "kid_lite0")} < set(figures)
    # by hand: the averaged generator over the split
    from datamodules import PairedImages

    model = load_run(run)
    data = PairedImages(trained["pairs"], model.concepts, size=32, batch_size=4, split=(0.7, 0.15, 0.15))
    data.setup("test")
    differences = []
    for stored in data._evaluation_dataloader(stage):
        batch = data.on_after_batch_transfer(stored, 0)
        with torch.no_grad():
            differences.append((model(batch["photo"], batch["concept"]) - batch["edit"]).abs().mean((1, 2, 3)))
    assert float(figures[f"{stage}/reconstruction"]) == pytest.approx(torch.cat(differences).mean().item(), abs=1e-5)


def test_a_run_folder_is_not_written_twice(trained):
    before = (trained["base"] / "metrics.csv").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already; resume it with --ckpt_path last"):
        fit_base(trained["pairs"], trained["base"], "--data.concepts=[inverted]")
    assert (trained["base"] / "metrics.csv").read_bytes() == before


def test_measuring_an_untrained_run_is_refused(pair_set):
    config = TINY_CONFIGS / "base_gan" / "e2gan.yaml"
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt is missing; `fit` this config first"):
        main(["test", f"-c={config}", f"--data.root={pair_set}"])


def test_another_architectures_checkpoint(trained, tmp_path):
    checkpoint = trained["base"] / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"of another architecture: .* is .* there and .* here"):
        fit_base(
            trained["pairs"], tmp_path / "run", "--data.concepts=[inverted]", "--model.generator.width=16",
            f"--ckpt_path={checkpoint}",
        )  # fmt: skip


def test_other_concepts_are_refused_when_measuring(trained):
    with pytest.raises(ValueError, match="unknown concept sepia; this run was trained on inverted"):
        main(["test", f"-c={trained['base'] / 'config.yaml'}", "--data.concepts=[sepia]"])


def test_an_adapter_takes_one_concept(trained, tmp_path):
    with pytest.raises(ValueError, match="an adapter is for one concept, the data hold inverted, sepia"):
        fit_adapter(trained["pairs"], trained["base"], tmp_path / "run")


def test_a_refused_resume_leaves_the_run_as_it_is(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run")
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="of another architecture"):
        fit_base(pair_set, run, "--model.generator.width=16", "--ckpt_path=last")
    assert (run / "config.yaml").read_bytes() == before
    assert load_run(run).images_seen == 24


def test_a_copied_run_goes_on_in_its_own_folder(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run")
    copied = Path(shutil.copytree(run, tmp_path / "copied"))
    fit_base(pair_set, copied, "--budget.images=36", f"--ckpt_path={copied / 'checkpoints' / 'last.ckpt'}")
    assert load_run(copied).images_seen == 36
    assert load_run(run).images_seen == 24
    assert config_of(copied)["ckpt_path"] is None


def test_last_without_a_checkpoint_starts_over(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run")
    first = (run / "metrics.csv").read_text()
    shutil.rmtree(run / "checkpoints")
    with pytest.warns(UserWarning, match="has no checkpoint yet, the first comes with the first validation"):
        fit_base(pair_set, run, "--ckpt_path=last")
    assert len((run / "metrics.csv").read_text().splitlines()) == len(first.splitlines())


@pytest.mark.extended
def test_on_the_command_line_a_refusal_is_one_line(pair_set, tmp_path):
    words = ["fit", f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}", f"--data.root={pair_set}", "--data.size=28"]
    words.append(f"--trainer.default_root_dir={tmp_path / 'run'}")
    ended = subprocess.run([sys.executable, "-m", "pocketgan", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "pocketgan fit: size 28 is not divisible by 8; use 24 or 32"
    assert "Traceback" not in ended.stderr
    assert list((tmp_path / "run").rglob("*")) == []


def test_a_foreign_checkpoint(trained, tmp_path):
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "loops": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="is not of a base or an adapter"):
        fit_base(trained["pairs"], tmp_path / "run", f"--ckpt_path={tmp_path / 'foreign.ckpt'}")


def test_other_loggers_come_beside_the_run_folders_own(pair_set, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    fit_base(pair_set, run, "--trainer.logger=WandbLogger", f"--trainer.logger.save_dir={run}")
    wandb.finish()  # Lightning's logger leaves its run open
    assert load_run(run).images_seen == 24
    assert (run / "metrics.csv").is_file()
    assert list((run / "wandb").glob("offline-run-*"))


def test_a_missing_file_of_a_class_is_said_plainly(pair_set, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"inception-2015-12-05\.pt"):
        fit_base(pair_set, tmp_path / "run", "--model.quality.feature_extractor=InceptionFeatures")
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        fit_adapter(pair_set, tmp_path / "nothing", tmp_path / "run")


def test_a_run_is_used_without_what_measures_it_and_after_a_move(trained, tmp_path):
    for name in ("base", "adapter"):
        shutil.copytree(trained[name], tmp_path / "moved" / trained[name].name)
    config = tmp_path / "moved" / "sepia" / "config.yaml"
    text = config.read_text().replace("EfficientNetLite0Features", "InceptionFeatures")
    config.write_text(text.replace(str(trained["base"]), "elsewhere/base"))
    assert load_run(config.parent).concepts == ["sepia"]


def test_an_adapter_is_no_base(trained, tmp_path):
    with pytest.raises(ValueError, match="holds an adapter; give its base instead"):
        fit_adapter(trained["pairs"], trained["adapter"], tmp_path / "run", "--data.concepts=[inverted]")


def test_adapting_starts_at_the_base(trained, tmp_path):
    model = LoRAAdaptation(
        trained["base"],
        {"up": 2},
        ["stem", "head"],
        adversarial_loss=LeastSquaresLoss(),
        reconstruction_loss=L1Loss(),
        quality=EditQuality(),
        generator_optimizer=torch.optim.Adam,
        discriminator_optimizer=torch.optim.Adam,
    )
    base = load_run(trained["base"]).requires_grad_(False)
    model.requires_grad_(False)
    photo, tokens = real_photos(1, 32)[0][None], torch.randn(1, 2, 16)
    for generator in (model.generator, model.generator_ema):
        assert torch.equal(generator(photo, tokens), base.generator_ema(photo, tokens))
    assert all(
        torch.equal(value, base.discriminator.state_dict()[name])
        for name, value in model.discriminator.state_dict().items()
    )


TINY_RUNS = [
    path
    for path in shipped(TINY_CONFIGS)
    if path.parent.name not in {"synthesize", "diffusion_adaptation", "diffusion_training", "personalization"}
]


def stage_one_of(config):
    return config.with_name(config.name.replace("stage2", "stage1"))


def run_on_single_images(config, folder):
    images = make_image_folder(folder / "images")
    words = [f"--data.root={images}", f"--trainer.default_root_dir={folder / 'run'}"]
    if "    start: start" in config.read_text():
        for name in ("start", "teacher"):
            first = [f"-c={stage_one_of(config)}", f"--data.root={images}"]
            main(["fit", *first, f"--trainer.default_root_dir={folder / name}"])
            words.append(f"--model.{name}={folder / name}")
    main(["fit", f"-c={config}", *words])
    for command in ("validate", "test"):
        main([command, f"-c={folder / 'run' / 'config.yaml'}"])
    assert load_unpaired_run(folder / "run").images_seen == 24


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:the network takes .* as it is")  # a tiny one meets every budget
@pytest.mark.parametrize("config", TINY_RUNS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_tiny_config_runs_end_to_end(config, trained, tmp_path):
    run, text = tmp_path / "run", config.read_text()
    if "UnpairedImages" in text:
        run_on_single_images(config, tmp_path)
        return
    root = trained["pairs"]
    if "StreamedPairs" in text:
        root = tmp_path / "chunks"
        main(["pairs", "convert", str(trained["pairs"]), "--to=litdata", f"--out={root}"])
    words = [f"-c={config}", f"--data.root={root}", f"--trainer.default_root_dir={run}"]
    if "    base:" in text:
        # what is made narrower knows its concepts already
        base = trained["adapter" if "ChannelCondensation" in text else "base"]
        words.append(f"--model.base={base}")
    if "    start: start" in text:
        first = [f"-c={stage_one_of(config)}", f"--data.root={root}"]
        main(["fit", *first, f"--trainer.default_root_dir={tmp_path / 'start'}", "--data.concepts=[sepia]"])
        words += [f"--model.start={tmp_path / 'start'}", f"--model.teacher={trained['adapter']}"]
    clip = make_text_encoder(tmp_path / "clip")
    main(["fit", *words, "--data.concepts=[sepia]"])
    shutil.rmtree(clip)  # a run carries the tokens of its prompts
    for command in ("validate", "test"):
        main([command, f"-c={run / 'config.yaml'}"])
    main(["export", str(run), f"--out={tmp_path / 'exported'}"])
    assert json.loads((tmp_path / "exported" / "sepia.onnx.json").read_text())["size"] == 32


def test_a_rank_above_the_dimension(trained, tmp_path):
    with pytest.raises(ValueError, match="is above its dimension"):
        fit_adapter(
            trained["pairs"],
            trained["base"],
            tmp_path / "run",
            "--data.concepts=[sepia]",
            "--model.ranks.up=64",
        )
    assert not (tmp_path / "run").exists()


def test_size_that_does_not_divide(trained, tmp_path):
    with pytest.raises(ValueError, match="size 28 is not divisible by 8; use 24 or 32"):
        fit_base(trained["pairs"], tmp_path / "run", "--data.size=28")


def test_load_run_refusals(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint best\.ckpt \(found: .*last\.ckpt"):
        load_run(trained["base"], "best.ckpt")


def test_adapter_starts_at_its_base_and_holds_only_itself(trained):
    base, adapter = load_run(trained["base"]), load_run(trained["adapter"])
    assert isinstance(adapter, LoRAAdaptation)
    assert adapter.concepts == ["sepia"]
    frozen = dict(base.generator_ema.named_parameters())
    inner = adapter.generator.base_model.model
    for name, parameter in frozen.items():
        if name.startswith("blocks"):
            assert torch.equal(inner.get_parameter(name), parameter)
    files = {file.name for file in (trained["adapter"] / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "prompt_tokens.safetensors"} <= files
    ranks = json.loads((trained["adapter"] / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert ranks["up.0.1"] == 4


def test_adapter_folder_equals_the_run(trained):
    from pocketgan.adapters import load_adapter

    run = load_run(trained["adapter"])
    adapted, tokens = load_adapter(load_run(trained["base"]).generator_ema, trained["adapter"] / "adapter")
    photo = real_photos(1, 32)[0][None]
    with torch.no_grad():
        expected = run(photo, ["sepia"])
        torch.testing.assert_close(adapted.eval()(photo, tokens["sepia"][None]), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(run.deployed("sepia")(photo), expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("export")
    main(["export", str(trained["adapter"]), "--target=onnx", f"--out={out}", "--size=64"])
    return out / "sepia.onnx"


@pytest.mark.parametrize("kind", ["run", "file"])
def test_edit_keeps_names_and_sizes(exported, trained, tmp_path, kind):
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    picture = to_image(real_photos(1, 96)[0])
    picture.resize((75, 50)).save(folder / "a.png")
    model = trained["adapter"] if kind == "run" else exported
    words = ["edit", str(tmp_path / "photos"), f"--model={model}", f"--out={tmp_path / 'out'}"]
    main(words)
    edited = tmp_path / "out" / "deep" / "a.png"
    with Image.open(edited) as opened:
        assert opened.size == (75, 50)
    before = edited.read_bytes()
    with pytest.raises(SystemExit, match="--overwrite"):
        main(words)
    assert edited.read_bytes() == before
    main([*words, "--overwrite"])


def test_edit_and_export_refusals(trained, exported, tmp_path):
    photo = tmp_path / "photo.png"
    to_image(real_photos(1, 64)[0]).save(photo)
    both = fit_base(trained["pairs"], tmp_path / "both")
    out = f"--out={tmp_path / 'out'}"
    with pytest.raises(SystemExit, match="needs a concept; choose one with --concept: inverted, sepia"):
        main(["edit", str(photo), f"--model={both}", out])
    with pytest.raises(SystemExit, match="does not know the concept mosaic"):
        main(["edit", str(photo), f"--model={exported}", "--concept=mosaic", out])
    with pytest.raises(SystemExit, match=r"photo\.png"):
        main(["edit", str(photo), f"--model={photo}", out])
    with pytest.raises(SystemExit, match="does not exist; give a run folder or an exported file"):
        main(["edit", str(photo), "--model=nothing.onnx", out])
    with pytest.raises(SystemExit, match="is not a run folder"):
        main(["export", str(tmp_path), out])
    assert not (tmp_path / "out").exists()


def test_predict_writes_a_pair_set(tmp_path):
    words = [
        "predict",
        f"-c={TINY_CONFIGS / 'synthesize' / 'style_transfer.yaml'}",
        f"--trainer.default_root_dir={tmp_path / 'p'}",
    ]
    main(words)
    lines = (tmp_path / "p" / "pairs.jsonl").read_text().splitlines()
    assert len(lines) == 6
    main([*words, "--data.limit=8"])
    assert len((tmp_path / "p" / "pairs.jsonl").read_text().splitlines()) == 8


def test_null_reaches_a_class_inside_a_class(capsys):
    config = CONFIGS / "synthesize" / "instruct_pix2pix.yaml"
    words = ["--model.teacher.scheduler=null", "--model.teacher.cache=DeepCache", "--model.teacher.variant", "null"]
    with pytest.raises(SystemExit):
        main(["predict", f"-c={config}", *words, "--model.teacher.arguments.guidance_scale=3", "--print_config"])
    teacher = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["teacher"]["init_args"]
    assert (teacher["scheduler"], teacher["variant"]) == (None, None)
    assert teacher["arguments"] == {
        "num_inference_steps": 100, "guidance_scale": 3, "image_guidance_scale": 1.5
    }  # fmt: skip


def test_jsonargparse_still_loses_null_inside_nested_classes():
    # once this fails, _keep_null_inside_nested_classes can go
    script = (
        "from jsonargparse import ArgumentParser\n"
        "class Inner:\n"
        "    def __init__(self, name: str | None = 'a'): ...\n"
        "class Outer:\n"
        "    def __init__(self, inner: Inner): ...\n"
        "parser = ArgumentParser()\n"
        "parser.add_subclass_arguments(Outer, 'outer')\n"
        "parsed = parser.parse_args(['--outer=Outer', '--outer.inner=Inner', '--outer.inner.name=null'])\n"
        "print(repr(parsed.outer.init_args.inner.init_args.name))\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "'None'"
