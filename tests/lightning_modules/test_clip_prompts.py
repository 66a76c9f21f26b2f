"""A base that reads prompts: a new prompt at adaptation, and no text encoder where none is needed."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_CONFIGS, fit_adapter, make_pair_set, real_photos
from tiny_text_encoder import make_text_encoder

from lightning_modules import load_concepts, load_run
from pocketgan.cli import main
from pocketgan.images import to_image
from pocketgan.text import CLIPTextEncoder

CONCEPTS = ("inverted", "mirrored", "sepia")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base on two concepts with their prompts and an adapter to a third with its own; the encoder is gone."""
    folder = tmp_path_factory.mktemp("clip_prompts")
    clip, pairs = make_text_encoder(folder / "clip"), make_pair_set(folder / "pairs", concepts=CONCEPTS)
    fit_clip_base(pairs, clip, folder / "base")
    fit_adapter(pairs, folder / "base", folder / "sepia", "--data.concepts=[sepia]")
    expected = CLIPTextEncoder(str(clip))(list(CONCEPTS), [f"make it {name}" for name in CONCEPTS])
    clip.rename(folder / "clip_elsewhere")
    return {"folder": folder, "tokens": dict(zip(CONCEPTS, expected, strict=True))}


def fit_clip_base(pairs, clip, run, *arguments):
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'base_gan' / 'clip_prompts.yaml'}",
            f"--data.root={pairs}",
            "--data.concepts=[inverted,mirrored]",
            f"--model.text_encoder.model={clip}",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )


def test_an_adapter_carries_the_tokens_of_its_own_prompt(world):
    found = load_file(world["folder"] / "sepia" / "adapter" / "prompt_tokens.safetensors")
    assert list(found) == ["sepia"]
    assert torch.equal(found["sepia"], world["tokens"]["sepia"])
    assert not torch.equal(found["sepia"], world["tokens"]["inverted"])


def test_runs_are_used_without_the_encoder(world, tmp_path, capsys):
    photo = real_photos(1, 64)[0]
    to_image(photo).save(tmp_path / "photo.png")
    for run, concept in (("base", "inverted"), ("sepia", "sepia")):
        folder = world["folder"] / run
        main(["edit", str(tmp_path / "photo.png"), "--model", str(folder), "--concept", concept, "--out", run])
        main(["test", f"-c={folder / 'config.yaml'}"])
    main(["export", str(world["folder"] / "sepia"), "--out", "exported"])
    assert (tmp_path / "exported" / "sepia.onnx").is_file()
    assert "test/reconstruction" in capsys.readouterr().out
    switched = load_concepts(world["folder"] / "base", [world["folder"] / "sepia"])
    adapter = load_run(world["folder"] / "sepia")
    with torch.no_grad():
        for concept, model in (("mirrored", load_run(world["folder"] / "base")), ("sepia", adapter)):
            switched.use(concept)
            torch.testing.assert_close(switched(photo[None]), model(photo[None], [concept]), atol=1e-5, rtol=0)
            assert torch.equal(model.text_encoder([concept], [f"make it {concept}"])[0], world["tokens"][concept])


def test_prompts_condition_the_base(world):
    base = load_run(world["folder"] / "base")
    photos = torch.stack(real_photos(2, 32))
    with torch.no_grad():
        assert not torch.allclose(base(photos, ["inverted"] * 2), base(photos, ["mirrored"] * 2), atol=1e-6)


def test_a_new_prompt_wants_the_encoder_that_the_base_was_trained_with(world, tmp_path):
    folder = world["folder"]
    with pytest.raises(FileNotFoundError, match="the prompt 'make it sepia' is new to the base"):
        fit_adapter(folder / "pairs", folder / "base", tmp_path / "run", "--data.concepts=[sepia]")


def test_a_checkpoint_of_another_encoder_is_refused(world, tmp_path):
    other = make_text_encoder(tmp_path / "other", seed=1)
    last = world["folder"] / "base" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"the checkpoint was trained with CLIPTextEncoder.*the config names"):
        fit_clip_base(world["folder"] / "pairs", other, tmp_path / "run", f"--ckpt_path={last}", "--budget.images=48")


def test_checkpoints_without_stored_prompts_still_load(world, tmp_path):
    """Those from before prompts were stored: the encoder is needed."""
    run = shutil.copytree(world["folder"] / "base", tmp_path / "base")
    file = run / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    assert set(state.pop("encoded_prompts")["tokens"]) == {"make it inverted", "make it mirrored"}
    torch.save(state, file)
    with pytest.raises(FileNotFoundError, match=r"text encoder .* could not be loaded"):
        load_run(run)
    config = run / "config.yaml"
    elsewhere = world["folder"] / "clip_elsewhere"
    config.write_text(config.read_text().replace(str(world["folder"] / "clip"), str(elsewhere)))
    assert load_run(run).concepts == ["inverted", "mirrored"]
