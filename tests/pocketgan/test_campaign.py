"""`pocketgan adapt`: many concepts from one base."""

import csv
import functools
import shutil

import pytest
import yaml
from lightning.pytorch import Trainer
from tiny import TINY_CONFIGS, config_of, fit_base, make_pair_set

from lightning_modules import load_run
from pocketgan.adapters import ranks_of
from pocketgan.cli import main

CONCEPTS = ("inverted", "sepia", "mirrored")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    pairs = make_pair_set(folder / "pairs", concepts=CONCEPTS)
    base = fit_base(pairs, folder / "base", "--data.concepts=[inverted]", "--data.seed=3")
    return base, pairs


def adapt(started, out, concepts, *arguments, options="--budget.images=24", config="e2gan"):
    base, pairs = started
    main(
        [
            "adapt",
            f"--base={base}",
            f"--pairs={pairs}",
            f"--concepts={concepts}",
            f"--out={out}",
            f"--config={TINY_CONFIGS / 'lora_adaptation' / config}.yaml",
            f"--fit_options=[{options}]",
            *arguments,
        ]
    )
    with (out / "adapters.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.extended
def test_all_means_every_concept_that_the_base_lacks(started, tmp_path, capsys):
    rows = adapt(started, tmp_path / "out", "all")
    assert [row["concept"] for row in rows] == ["mirrored", "sepia"]
    assert {row["state"] for row in rows} == {"new"}
    assert all(float(row["reconstruction"]) > 0 and float(row["images"]) == 24 for row in rows)
    assert "mirrored" in capsys.readouterr().out
    for row in rows:
        run = tmp_path / "out" / row["concept"]
        assert int(row["bytes"]) == sum(file.stat().st_size for file in (run / "adapter").glob("*.safetensors"))
        data = config_of(run)["data"]["init_args"]
        assert (data["seed"], data["size"]) == (3, 32)  # the base's held-out photos stay held out

    # again: nothing is trained, what is new is added
    before = (tmp_path / "out" / "sepia" / "metrics.csv").read_text()
    shutil.rmtree(tmp_path / "out" / "mirrored")
    rows = adapt(started, tmp_path / "out", "sepia,mirrored")
    assert [(row["concept"], row["state"]) for row in rows] == [("sepia", "done before"), ("mirrored", "new")]
    assert (tmp_path / "out" / "sepia" / "metrics.csv").read_text() == before


@pytest.mark.extended
def test_ranks_found_on_the_first_serve_all_and_later_campaigns(started, tmp_path):
    out = tmp_path / "out"
    adapt(started, out, "sepia", options="--budget.images=48", config="rank_search")
    found = yaml.safe_load((out / "sepia" / "ranks.yaml").read_text())
    adapt(started, out, "mirrored,sepia", options="--budget.images=48", config="rank_search")
    assert ranks_of(load_run(out / "mirrored").adapter) == found
    assert not (out / "mirrored" / "rank_search.json").exists()
    # a run does not need the rank file any more
    shutil.rmtree(out / "sepia")
    (out / "ranks.yaml").unlink()
    assert ranks_of(load_run(out / "mirrored").adapter) == found


@pytest.mark.extended
def test_a_broken_off_concept_goes_on(started, tmp_path):
    out = tmp_path / "out"
    adapt(started, out, "sepia", options="--budget.images=24")
    whole = load_run(out / "sepia").state_dict()
    (out / "sepia" / "adapted.json").unlink()
    rows = adapt(started, out, "sepia", options="--budget.images=24")
    assert rows[0]["state"] == "new"
    assert float(rows[0]["images"]) == 24
    assert all((whole[name] == value).all() for name, value in load_run(out / "sepia").state_dict().items())


@pytest.mark.extended
def test_two_devices_take_a_concept_each(started, tmp_path):
    rows = adapt(started, tmp_path / "out", "sepia,mirrored", "--devices=2")
    assert [(row["concept"], row["state"]) for row in rows] == [("sepia", "new"), ("mirrored", "new")]
    alone = adapt(started, tmp_path / "alone", "sepia")
    # on another number of threads sums round otherwise, and Adam turns that into steps
    assert float(rows[0]["reconstruction"]) == pytest.approx(float(alone[0]["reconstruction"]), rel=0.02)


def test_a_failing_concept_does_not_stop_the_others(started, tmp_path, monkeypatch):
    real = Trainer.fit

    @functools.wraps(real)  # the command line reads its signature
    def failing(self, model, *args, **kwargs):
        if "sepia" in str(self.default_root_dir):
            raise ValueError("the disk is full")
        return real(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", failing)
    with pytest.raises(SystemExit, match=r"1 of 2 concepts failed \(sepia\); start again"):
        adapt(started, tmp_path / "out", "sepia,mirrored")
    with (tmp_path / "out" / "adapters.csv").open() as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert states == ["failed: the disk is full", "new"]


@pytest.mark.extended
def test_a_base_concept_is_named(started, tmp_path, capsys):
    with pytest.warns(UserWarning, match="the base was trained on inverted already"):
        [row] = adapt(started, tmp_path / "out", "inverted")
    assert row["state"] == "new, in the base's own mix"
    adapt(started, tmp_path / "side", "inverted", "--devices=2")
    assert "inverted: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("concepts", "arguments", "message"),
    [
        ("night", (), "unknown concept night; .* holds inverted, mirrored, sepia"),
        (",", (), "unknown concept"),
        ("sepia", ("--ranks=r.yaml",), "rank file r.yaml does not exist"),
        ("sepia", ("--ranks=ranks.yaml",), "rank file ranks.yaml does not fit the base .*: .*elsewhere"),
        ("sepia", ("--config=c.yaml",), "config c.yaml does not exist"),
        ("sepia", ("--devices=-1",), "devices is -1"),
    ],
)
def test_bad_input_is_refused_first(started, tmp_path, concepts, arguments, message):
    (tmp_path / "ranks.yaml").write_text("elsewhere: 4\n")
    with pytest.raises(SystemExit, match=message):
        adapt(started, tmp_path / "out", concepts, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_does_not_bar_the_right_one(started, tmp_path, capsys):
    with pytest.raises(SystemExit):
        adapt(started, tmp_path / "out", "sepia", options="--budget.imagez=24")
    assert "budget.imagez" in capsys.readouterr().err
    assert adapt(started, tmp_path / "out", "sepia")[0]["state"] == "new"


def test_more_devices_than_gpus_are_refused(started, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(SystemExit, match="devices is 2, 1 GPUs are visible; give at most as many"):
        adapt(started, tmp_path / "out", "sepia", "--devices=2")


@pytest.mark.extended
def test_a_concept_broken_off_after_its_search_goes_on_with_it(started, tmp_path, monkeypatch):
    """The next start searches no second time, whichever concept it begins with."""
    out = tmp_path / "out"
    test = Trainer.test

    @functools.wraps(test)
    def killed(self, *arguments, **options):
        raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "test", killed)
    with pytest.raises(SystemExit, match="concepts failed"):
        adapt(started, out, "sepia", config="rank_search", options="--budget.images=48")
    monkeypatch.setattr(Trainer, "test", test)
    trace = (out / "sepia" / "rank_search.json").read_text()
    rows = adapt(started, out, "mirrored,sepia", config="rank_search", options="--budget.images=48")
    assert [(row["concept"], row["state"]) for row in rows] == [("mirrored", "new"), ("sepia", "new")]
    assert (out / "sepia" / "rank_search.json").read_text() == trace
    assert not (out / "mirrored" / "rank_search.json").exists()
    assert float(rows[0]["seconds"]) > 0
    assert rows[1]["seconds"] == ""


def test_an_adapter_is_refused_as_base(started, tmp_path):
    adapt(started, tmp_path / "out", "sepia")
    with pytest.raises(SystemExit, match="holds an adapter; give its base instead"):
        adapt((tmp_path / "out" / "sepia", started[1]), tmp_path / "second", "mirrored")
    assert not (tmp_path / "second").exists()


def test_other_settings_are_refused(started, tmp_path):
    adapt(started, tmp_path / "out", "sepia")
    with pytest.raises(SystemExit, match=r"\(options: --budget.images=24 then, --budget.images=32 now\)"):
        adapt(started, tmp_path / "out", "sepia", options="--budget.images=32")


@pytest.mark.extended
def test_the_table_has_all_that_is_done_and_concepts_may_stand_in_a_file(started, tmp_path, capsys):
    (tmp_path / "sepia.txt").write_text("sepia\n")
    adapt(started, tmp_path / "out", tmp_path / "sepia.txt")
    capsys.readouterr()
    rows = adapt(started, tmp_path / "out", "[mirrored]")
    assert [(row["concept"], row["state"]) for row in rows] == [("mirrored", "new"), ("sepia", "done before")]
    heading, *lines, _ = capsys.readouterr().out.splitlines()[-4:]
    assert heading.split() == ["concept", "images", "bytes", "kid_lite0", "reconstruction", "ssim", "state"]
    assert [line.split()[0] for line in lines] == ["mirrored", "sepia"]
    assert f"{float(rows[1]['reconstruction']):.4g}" in lines[1].split()


def test_a_run_folder_is_no_place_for_a_campaign(started, tmp_path):
    base, _ = started
    with pytest.raises(SystemExit, match="is the folder of a run; choose another --out"):
        adapt(started, base, "sepia")
