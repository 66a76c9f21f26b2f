"""Condense, prune, fine-tune: one fit, resumable in each of its stages."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same, state, weights
from tiny import TINY_CONFIGS, fit_base, fit_condensed, make_pair_set
from two_ranks import fit_on_two_ranks

from lightning_modules import ChannelCondensation, load_run
from pocketgan.cli import main
from pocketgan.compression import LatencyTarget, layer_macs, parameter_count
from pocketgan.exporters import Latency

SHARE = '--model.pruning={"class_path": "KeptShare", "init_args": {"share": 0.5, "multiple": 2}}'
QUALITY = (
    '--model.pruning={{"class_path": "QualityBudget", "init_args": '
    '{{"max_quality_loss": {}, "notch_images": 8, "shrink_factor": 0.7, "multiple": 2}}}}'
)
EACH_BATCH = "--trainer.val_check_interval=1"


def milliseconds(self, networks, size_divisor):
    """A clock that counts parameters: exporting takes seconds, tests/pocketgan/compression/test_cost.py does it."""
    return [Latency(parameter_count(network) / 1000, 0.0, self.threads, self.size) for network in networks]


@pytest.fixture(scope="module", autouse=True)
def _clock():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatencyTarget, "measure", milliseconds)
        yield


def figures(run):
    return json.loads((run / "compression.json").read_text())


@pytest.fixture(scope="module")
def condensed(trained, tmp_path_factory):
    run = tmp_path_factory.mktemp("condensed") / "run"
    return fit_condensed(trained["pairs"], trained["adapter"], run, SHARE, EACH_BATCH)


@pytest.mark.extended
def test_the_result_is_a_narrower_network(condensed, trained, capsys):
    found, model, whole = figures(condensed), load_run(condensed), load_run(trained["adapter"])
    assert isinstance(model, ChannelCondensation)
    photo = torch.rand(1, 3, 32, 32)
    narrow, wide = model.deployed("sepia"), whole.deployed("sepia")
    assert parameter_count(narrow) == found["after"]["parameters"] < 0.35 * parameter_count(wide)
    tokens = model.text_encoder_ema(["sepia"], ["make it sepia"])
    assert layer_macs(model.generator_ema, (photo, tokens))[""] == found["after"]["macs"]
    assert found["before"]["widths"]["stem.0"] == 8
    assert found["after"]["widths"]["stem.0"] == model.generator.stem[0].out_channels == 4
    assert [(row["images"], row["share_of_macs"] == 1) for row in found["trace"]] == [(12, True), (12, False)]
    assert not model.is_condensing
    main(["export", str(condensed), f"--out={condensed.parent / 'exported'}"])
    assert (condensed.parent / "exported" / "sepia.onnx").is_file()


def test_the_table_names_what_changed(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", SHARE)
    shown = capsys.readouterr().out
    for words in (
        "width of stem.0",
        "parameters",
        "MMACs at 32 px",
        "ms at 32 px, median",
        "validation reconstruction",
    ):
        assert words in shown


@pytest.mark.extended
def test_the_teacher_is_the_condensed_network_and_stays_as_it_is(condensed, trained, tmp_path):
    """At the hand-over the average of the first stage becomes the teacher; later steps leave it alone."""
    run = tmp_path / "run"
    fit_condensed(trained["pairs"], trained["adapter"], run, SHARE, EACH_BATCH, "--budget.images=16")
    first = weights(run)["state_dict"]
    fit_condensed(trained["pairs"], trained["adapter"], run, SHARE, EACH_BATCH, "--ckpt_path=last")
    last = weights(run)["state_dict"]
    teacher = {name for name in last if name.startswith("teacher.")}
    assert teacher
    for name in teacher:
        assert torch.equal(first[name], last[name]), name
    whole = load_run(trained["adapter"])
    widest = dict(whole.generator_ema.base_model.model.named_parameters())["blocks_before.0.body.0.weight"]
    assert last["teacher.blocks_before.0.body.0.weight"].shape == widest.shape


@pytest.mark.filterwarnings("ignore:nothing will be pruned")
@pytest.mark.parametrize("images", [8, 12, 16])
def test_resumed_equals_uninterrupted(condensed, trained, tmp_path, images):
    """Stopped while condensing, at the hand-over, and while fine-tuning."""
    run = tmp_path / "run"
    words = (trained["pairs"], trained["adapter"], run, SHARE, EACH_BATCH)
    fit_condensed(*words, f"--budget.images={images}")
    fit_condensed(*words, "--ckpt_path=last")
    assert_same(state(run), state(condensed))
    assert figures(run)["trace"] == figures(condensed)["trace"]
    assert figures(run)["kept"] == figures(condensed)["kept"]


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:nothing will be pruned")
def test_several_budgets_go_on_from_one_condensed_network(condensed, trained, tmp_path):
    words = (trained["pairs"], trained["adapter"])
    whole = fit_condensed(*words, tmp_path / "whole", SHARE, EACH_BATCH, "--budget.images=12")
    assert load_run(whole).generator.stem[0].out_channels == 8
    start = f"--ckpt_path={whole / 'checkpoints' / 'last.ckpt'}"
    half = fit_condensed(*words, tmp_path / "half", SHARE, EACH_BATCH, start)
    assert_same(state(half), state(condensed))
    wider = SHARE.replace("0.5", "0.75")
    assert (
        load_run(fit_condensed(*words, tmp_path / "wider", wider, EACH_BATCH, start)).generator.stem[0].out_channels
        == 6
    )


def test_fine_tuning_starts_at_the_pruned_average(trained, tmp_path):
    """Without a first stage the base's average is pruned; every weight trains."""
    run = tmp_path / "run"
    words = (trained["pairs"], trained["adapter"], run, SHARE, EACH_BATCH, "--model.condense_images=0")
    fit_condensed(*words, "--budget.images=4")
    trace = figures(run)["trace"]
    assert [row["images"] for row in trace] == [0, 0]
    assert trace[0]["val_loss"] == pytest.approx(figures(run)["before"]["val_loss"])
    model = load_run(run)
    assert all(parameter.requires_grad for parameter in model.generator.parameters())
    assert model.images_seen + model.earlier_images == 4  # the moving average begins with the narrower network


@pytest.mark.extended
def test_a_latency_budget_is_met_and_used(trained, tmp_path, capsys):
    whole = parameter_count(load_run(trained["adapter"]).deployed("sepia"))
    run = fit_condensed(
        trained["pairs"], trained["adapter"], tmp_path / "run", f"--model.pruning.budget_ms={whole / 2000}",
        "--model.pruning.multiple=2",
    )  # fmt: skip
    found = figures(run)
    assert f"budget of {whole / 2000:g} ms met: {found['after']['latency_ms']:.2f} ms" in capsys.readouterr().out
    assert found["before"]["latency_ms"] == whole / 1000
    assert 0.4 * whole < found["after"]["parameters"] == parameter_count(load_run(run).deployed("sepia")) <= whole / 2


@pytest.mark.parametrize("teacher", ["base", "null"])
def test_other_teachers(trained, tmp_path, teacher):
    run = fit_condensed(
        trained["pairs"], trained["adapter"], tmp_path / "run", SHARE, f"--model.teacher={teacher}",
        "--model.max_teacher_loss=0", "--model.cost=milliseconds",
    )  # fmt: skip
    # the base's folder has its weights
    assert not any(name.startswith("teacher.") for name in weights(run)["state_dict"])
    model = load_run(run)
    assert model.images_seen == 24
    if teacher == "base":
        name = "blocks_before.0.body.0.weight"
        original = load_run(trained["adapter"]).deployed("sepia").generator.state_dict()[name]
        assert torch.equal(model.teacher.state_dict()[name], original)
    else:
        assert model.teacher is None


def test_a_teacher_that_lost_its_quality_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"worse than its base's 0\.\d+; as the teacher at most -?\d"):
        fit_condensed(
            trained["pairs"], trained["adapter"], tmp_path / "run", SHARE, "--model.max_teacher_loss=0.0",
            "--model.generator_optimizer.lr=1.0", EACH_BATCH,
        )  # fmt: skip
    assert weights(tmp_path / "run")["images_seen"] == 8  # what was there before stays


@pytest.mark.extended
def test_a_quality_budget_shrinks_while_the_metric_and_the_images_allow_it(trained, tmp_path):
    run = fit_condensed(
        trained["pairs"], trained["adapter"], tmp_path / "run", QUALITY.format(1000), "--budget.images=44"
    )
    macs = [row["share_of_macs"] for row in figures(run)["trace"]]
    assert macs == sorted(macs, reverse=True)
    # cut at 12, 20, 28 and 36 images; judged at 20, 28, 36 and 44, where another notch could not be judged
    assert [row["images"] for row in figures(run)["trace"]] == [12, 12, 20, 20, 28, 28, 36, 36, 44]
    assert macs[-1] < 0.35
    assert figures(run)["after"]["macs"] / figures(run)["before"]["macs"] == pytest.approx(macs[-1])
    model = load_run(run)
    assert model.is_settled
    assert model.last_good is None


def judged(monkeypatch, *losses):
    """Have networks judged at these losses: the base, its figures, the hand-over, then each as it is cut or judged."""
    told = iter(losses)
    monkeypatch.setattr(ChannelCondensation, "validation_loss", lambda self: next(told, 1.0))
    put, states = ChannelCondensation._put, []

    def noted(self, kept, generator):
        states.append((kept, {name: value.clone() for name, value in generator.state_dict().items()}))
        put(self, kept, generator)

    monkeypatch.setattr(ChannelCondensation, "_put", noted)
    return states


@pytest.mark.extended
def test_a_quality_budget_steps_back(trained, tmp_path, monkeypatch):
    """The third judgement fails: the second notch comes back with the weights that it was judged with."""
    states = judged(monkeypatch, 1.0, 1.0, 1.0, 9.0, 1.01, 9.0, 1.02, 9.0, 1.2)
    good = []
    narrow = ChannelCondensation._narrow

    def noted(self, kept):
        good.append({name: value.clone() for name, value in self.generator_ema.state_dict().items()})
        narrow(self, kept)

    monkeypatch.setattr(ChannelCondensation, "_narrow", noted)
    words = (trained["pairs"], trained["adapter"], tmp_path / "run", QUALITY.format(0.05))
    fit_condensed(*words, "--budget.images=60", EACH_BATCH)
    widths = [sum(len(units) for units in kept.values()) for kept, _ in states]
    assert widths[0] > widths[1] > widths[2]
    assert states[3][0] == states[1][0]
    assert_same(states[3][1], good[2])
    model = load_run(tmp_path / "run")
    assert model.is_settled
    assert model.kept == states[1][0]


@pytest.mark.extended
@pytest.mark.parametrize("images", [28, 14])
def test_a_first_notch_that_fails_gives_the_base_back(trained, tmp_path, monkeypatch, images):
    """Judged after its own images, or where the budget ends inside it."""
    judged(monkeypatch, 1.0, 1.0, 1.0, 1.0, 1.2)
    with pytest.warns(
        UserWarning, match=r"first notch passes max_quality_loss 0\.05 already: the network stays as it came"
    ):
        run = fit_condensed(
            trained["pairs"], trained["adapter"], tmp_path / "run", QUALITY.format(0.05),
            f"--budget.images={images}", EACH_BATCH,
        )  # fmt: skip
    assert figures(run)["after"]["macs"] == figures(run)["before"]["macs"]
    model = load_run(run)
    assert model.is_settled
    if images == 14:  # nothing was trained after it came back
        name = "blocks_before.0.body.0.weight"
        original = load_run(trained["adapter"]).deployed("sepia").generator.state_dict()[name]
        assert torch.equal(model.generator_ema.state_dict()[name], original)


def test_a_budget_that_ends_before_the_pruning_is_told(trained, tmp_path, capsys):
    with pytest.warns(
        UserWarning, match="nothing will be pruned and fine-tuned: condense_images is 100, the budget ends"
    ):
        fit_condensed(
            trained["pairs"], trained["adapter"], tmp_path / "run", SHARE, "--model.condense_images=100",
            "--budget.images=4",
        )  # fmt: skip
    assert "not pruned: the budget ended at 4 images, within condense_images 100" in capsys.readouterr().out


def test_budgets_that_cannot_be_met(trained, tmp_path):
    with pytest.raises(ValueError, match=r"allowed takes \d+\.\d\d ms, the whole one \d+\.\d\d ms; the budget is"):
        fit_condensed(
            trained["pairs"], trained["adapter"], tmp_path / "run", "--model.pruning.budget_ms=0.0001", EACH_BATCH
        )
    assert not list((tmp_path / "run").rglob("*.*"))  # said before any training, nothing is in the corrected run's way


def test_another_rule_is_refused_once_the_widths_are_chosen(condensed, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(condensed, run)
    before = (run / "config.yaml").read_text()
    with pytest.raises(
        ValueError, match=r"chosen by KeptShare\(share=0\.5, multiple=2\), the config says KeptShare\(share=0\.25"
    ):
        fit_condensed(
            trained["pairs"], trained["adapter"], run, SHARE.replace("0.5", "0.25"), EACH_BATCH, "--ckpt_path=last"
        )
    assert (run / "config.yaml").read_text() == before


def test_bases_that_do_not_fit(trained, tmp_path):
    with pytest.raises(ValueError, match="the base does not know sepia, only inverted; compress a run"):
        fit_condensed(trained["pairs"], trained["base"], tmp_path / "run", SHARE)
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        fit_condensed(trained["pairs"], tmp_path / "nothing", tmp_path / "run", SHARE)
    with pytest.raises(ValueError, match="size 36 is not divisible by 8"):
        fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", "--model.target.size=36")
    with pytest.raises(ValueError, match="condense_images is -1"):
        fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", "--model.condense_images=-1")
    with pytest.raises(ValueError, match=r"condensed_share is 1\.0; give a share of the channels from 0 to below 1"):
        fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", "--model.condensed_share=1")
    with pytest.raises(ValueError, match="not of a ChannelCondensation"):
        fit_condensed(
            trained["pairs"], trained["adapter"], tmp_path / "run",
            f"--ckpt_path={trained['adapter'] / 'checkpoints' / 'last.ckpt'}",
        )  # fmt: skip


def test_an_unfinished_base(trained, tmp_path):
    copied = Path(shutil.copytree(trained["adapter"], tmp_path / "copied"))
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace("budget:\n  images: 24", "budget:\n  images: 48"))
    with pytest.raises(ValueError, match=r"copied is unfinished: it has seen 24 of 48 images; finish it with"):
        fit_condensed(trained["pairs"], copied, tmp_path / "run", SHARE)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_only_condensation_has_a_table(pair_set, tmp_path):
    table = '--trainer.callbacks=[{"class_path": "CompressionTable"}]'
    with pytest.raises(TypeError, match="CompressionTable serves ChannelCondensation, this run trains a BaseGAN"):
        fit_base(pair_set, tmp_path / "run", table)


@pytest.mark.parametrize("norm", ["BatchNorm", "InstanceNorm"])
def test_other_norms(pair_set, tmp_path, norm):
    base = fit_base(pair_set, tmp_path / "base", "--data.concepts=[sepia]", f"--model.generator.norm={norm}")
    run = fit_condensed(pair_set, base, tmp_path / "run", SHARE)
    assert load_run(run).generator.stem[1].weight.shape == (4,)


def test_a_condensed_run_can_be_condensed_again(condensed, trained, tmp_path):
    run = fit_condensed(trained["pairs"], condensed, tmp_path / "run", SHARE)
    assert load_run(run).generator.stem[0].out_channels == 2


@pytest.mark.filterwarnings("ignore:nothing will be pruned")
def test_norms_learn_faster_while_condensing(trained, tmp_path):
    run = fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", SHARE, EACH_BATCH, "--budget.images=8")
    rates = [group["lr"] for group in weights(run)["optimizer_states"][0]["param_groups"]]
    assert rates == pytest.approx([1e-3, 1e-2])
    scales = weights(run)["state_dict"]["generator.stem.1.weight"]
    assert scales.shape == (8,)


@pytest.mark.filterwarnings("ignore:nothing will be pruned")
def test_norms_learn_as_the_rest_without_a_concentration_term(trained, tmp_path):
    run = fit_condensed(
        trained["pairs"], trained["adapter"], tmp_path / "run", SHARE, EACH_BATCH, "--budget.images=8",
        "--model.concentration_weight=0",
    )  # fmt: skip
    assert [group["lr"] for group in weights(run)["optimizer_states"][0]["param_groups"]] == [1e-3, 1e-3]


def test_early_stopping_leaves_the_stages_alone(trained, tmp_path):
    """Its ``images`` are examples, no budget."""
    run = fit_condensed(
        trained["pairs"], trained["adapter"], tmp_path / "run", SHARE, "--early_stopping=LossTrackingEarlyStopping",
        "--early_stopping.images=8", "--early_stopping.window=2", "--early_stopping.threshold=1e-12",
    )  # fmt: skip
    assert not load_run(run).is_condensing
    assert figures(run)["after"]["widths"]["stem.0"] == 4


def test_batch_norm_and_constants_are_measured_on_all_concepts(trained, tmp_path, monkeypatch):
    seen = []
    batches = ChannelCondensation._training_batches

    def noted(self):
        for photo, tokens in batches(self):
            seen.append(tokens.flatten(1))
            yield photo, tokens

    monkeypatch.setattr(ChannelCondensation, "_training_batches", noted)
    monkeypatch.setattr("lightning_modules.channel_condensation.MEASURED_PHOTOS", 4)
    base = fit_base(trained["pairs"], tmp_path / "base")
    fit_condensed(trained["pairs"], base, tmp_path / "run", SHARE, "--data.concepts=[inverted,sepia]")
    measured = torch.cat(seen)
    assert len(measured) % 4 == 0
    for four in measured.split(4):
        assert len(four.unique(dim=0)) == 2
        assert torch.equal(four[0], four[1])


def test_what_is_no_number_is_no_teacher(trained, tmp_path, monkeypatch):
    judged(monkeypatch, 1.0, 1.0, float("nan"))
    with pytest.raises(ValueError, match=r"validation L1 is nan, nan% worse than its base's"):
        fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", SHARE)


@pytest.mark.extended
def test_a_notch_that_is_no_number_is_stepped_back_from(trained, tmp_path, monkeypatch):
    states = judged(monkeypatch, 1.0, 1.0, 1.0, 9.0, 1.01, 9.0, float("nan"), 1.01)
    fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", QUALITY.format(0.05), "--budget.images=60")
    assert load_run(tmp_path / "run").kept == states[0][0]


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_run_that_the_clock_ends_makes_no_further_notch(trained, tmp_path, monkeypatch):
    states = judged(monkeypatch, 1.0, 1.0, 1.0, 9.0, 1.01)
    judge = ChannelCondensation._judge_notch

    def ended(self, pruning):
        self.trainer.should_stop = True
        judge(self, pruning)

    monkeypatch.setattr(ChannelCondensation, "_judge_notch", ended)
    fit_condensed(trained["pairs"], trained["adapter"], tmp_path / "run", QUALITY.format(0.05), "--budget.images=60")
    model = load_run(tmp_path / "run")
    assert model.kept == states[0][0]
    assert not model.is_settled


def test_another_target_is_refused_on_the_way(condensed, trained, tmp_path):
    run = Path(shutil.copytree(condensed, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"figures are of LatencyTarget\(.*size=32.*the config says .*size=40"):
        fit_condensed(
            trained["pairs"], trained["adapter"], run, SHARE, EACH_BATCH, "--ckpt_path=last", "--model.target.size=40"
        )


@pytest.mark.extended
def test_two_processes_narrow_alike(tmp_path):
    pairs = make_pair_set(tmp_path / "pairs")
    # its running statistics differ between ranks
    base = fit_base(pairs, tmp_path / "base", "--data.concepts=[sepia]", "--model.generator.norm=BatchNorm")
    words = [
        "fit", f"-c={TINY_CONFIGS / 'channel_condensation' / 'latency_budget.yaml'}", f"--data.root={pairs}",
        "--data.concepts=[sepia]", f"--model.base={base}", f"--trainer.default_root_dir={tmp_path / 'run'}", SHARE,
    ]  # fmt: skip
    ranks = fit_on_two_ranks(tmp_path, words, strategy="ddp_find_unused_parameters_true")
    for name, value in ranks[0].items():
        if "running_" not in name:
            assert torch.equal(value, ranks[1][name]), name
    assert ranks[0]["generator.stem.0.weight"].shape[0] == 4
    assert load_run(tmp_path / "run").images_seen == 24
