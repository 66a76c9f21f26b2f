"""Tiny pipelines of each family as the teacher."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import tiny_editors
import torch
import yaml
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import CONFIGS
from tiny_dit import make_pipeline as make_dit_pipeline
from tiny_editors import make_editor, save_single_file
from tiny_pipeline import make_photos, make_pipeline, open_pipeline, shaken

from pocketgan.caches import DeepCache, FirstBlockCache
from pocketgan.cli import main
from pocketgan.personalization import CustomDiffusion, DreamBoothLoRA, TextualInversion
from pocketgan.teachers import DiffusersTeacher
from pocketgan.teachers.editing_pipeline import check_arguments, editor_class

PROMPTS = {"oil": "an oil painting"}
RING = {"ring": "a photo of a <ring>"}
QUICK = {"strength": 0.5, "num_inference_steps": 4, "guidance_scale": 2.0}
# family: its arguments, the class it is opened as, the smallest photo that it takes
FAMILIES = {
    "stable_diffusion": (QUICK, "StableDiffusionImg2ImgPipeline", 32),
    "turbo": (
        {"strength": 0.5, "num_inference_steps": 2, "guidance_scale": 0.0}, "StableDiffusionImg2ImgPipeline", 32
    ),
    "instruct_pix2pix": (
        {"num_inference_steps": 2, "image_guidance_scale": 1.5}, "StableDiffusionInstructPix2PixPipeline", 32
    ),
    "controlnet": (QUICK, "StableDiffusionControlNetImg2ImgPipeline", 32),
    "stable_diffusion_xl": (QUICK, "StableDiffusionXLImg2ImgPipeline", 32),
    "flux_kontext": ({"num_inference_steps": 2, "guidance_scale": 2.5}, "FluxKontextPipeline", 32),
    "flux2_klein": (
        {"num_inference_steps": 2, "guidance_scale": 1.0, "text_encoder_out_layers": [1]}, "Flux2KleinPipeline", 64
    ),
    "qwen_image_edit": ({"num_inference_steps": 1, "true_cfg_scale": 1.0}, "QwenImageEditPipeline", 32),
}  # fmt: skip
BATCHED = [name for name in FAMILIES if name not in {"flux2_klein", "qwen_image_edit"}]


@pytest.fixture(scope="module")
def editors(tmp_path_factory):
    made = {}

    def editor(family):
        if family not in made:
            made[family] = make_editor(getattr(tiny_editors, family), tmp_path_factory.mktemp("editors") / family)
        return str(made[family])

    return editor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("teacher") / "pipeline")


@pytest.fixture(scope="module")
def personalization(folder, tmp_path_factory):
    return stored(folder, TextualInversion("<ring>", "a"), tmp_path_factory.mktemp("stored"))


def stored(folder, method, out):
    method.prepare(open_pipeline(folder))
    shaken(method.trainable_parameters())
    method.save(out)
    return out


def some_photos(count=3, size=32):
    levels = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return levels / 127.5 - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_edits_a_photo_by_its_own_seed_alone(editors, family):
    arguments, kind, size = FAMILIES[family]
    teacher = DiffusersTeacher(editors(family), PROMPTS, arguments)
    assert teacher.settings["pipeline"] == kind
    count = 1 if family == "qwen_image_edit" else 2  # it always works on a megapixel
    photos = some_photos(count, size)
    together = teacher.edit(photos, "an oil painting", list(range(count)))
    assert together.shape == photos.shape
    assert together.abs().max() <= 1
    assert together.std() > 0.01
    if count == 2:
        assert torch.equal(teacher.edit(photos[1:], "an oil painting", [1]), together[1:])
        assert not torch.equal(teacher.edit(photos[1:], "an oil painting", [2]), together[1:])
    assert not torch.equal(teacher.edit(photos[:1], "a pencil drawing", [0]), together[:1])
    assert teacher.edit(photos[:0], "a", []).shape == (0, 3, size, size)
    json.dumps(teacher.settings)


@pytest.mark.parametrize("family", BATCHED)
def test_a_larger_batch_makes_the_same_pixels(editors, family):
    arguments, _, size = FAMILIES[family]
    arguments = {**arguments, "negative_prompt": "grey"} if "strength" in arguments else arguments
    photos = some_photos(3, size)
    one, several = (
        DiffusersTeacher(editors(family), PROMPTS, arguments, batch_size=batch).edit(photos, "a", [1, 2, 3])
        for batch in (1, 2)
    )
    assert (one - several).abs().max() < 1e-4  # of 2; an 8-bit level is 8e-3


def test_editors_of_several_references_refuse_batches(editors):
    with pytest.raises(ValueError, match="Flux2KleinPipeline takes several pictures as references of one edit"):
        DiffusersTeacher(editors("flux2_klein"), PROMPTS, batch_size=2)


def test_strength_says_how_much_of_the_photo_is_kept(folder):
    photo = torch.full((1, 3, 32, 32), 0.5)
    weak, strong = (
        DiffusersTeacher(str(folder), RING, {"strength": strength, "num_inference_steps": 10})
        for strength in (0.1, 1.0)
    )
    # of random weights the VAE keeps no picture: compare with what it makes of the photo alone
    pipeline = open_pipeline(folder)
    with torch.no_grad():
        kept = pipeline.vae.decode(pipeline.vae.encode(photo).latent_dist.mean).sample.clamp(-1, 1)
    distances = [(teacher.edit(photo, "a", [0]) - kept).abs().mean() for teacher in (weak, strong)]
    assert distances[0] < distances[1]


def test_a_single_file_gives_the_edits_of_its_folder(editors, tmp_path):
    source = editors("stable_diffusion")
    file = save_single_file(StableDiffusionPipeline.from_pretrained(source), tmp_path / "model.safetensors")
    kind = "StableDiffusionImg2ImgPipeline"
    teachers = [
        DiffusersTeacher(source, PROMPTS, QUICK),
        DiffusersTeacher(str(file), PROMPTS, QUICK, pipeline_class=kind, config=source),
    ]
    edits = [teacher.edit(some_photos(1), "an oil painting", [0]) for teacher in teachers]
    assert torch.equal(*edits)
    assert teachers[0].settings["weights_sha256"] == teachers[1].settings["weights_sha256"]


def test_a_controlnet_can_be_put_beside_a_pipeline(editors):
    source = editors("stable_diffusion")
    teachers = {
        control: DiffusersTeacher(
            source, PROMPTS, QUICK, controlnet=f"{editors('controlnet')}/controlnet", control=control
        )
        for control in ("photo", "canny")
    }
    kinds = {teacher.settings["pipeline"] for teacher in teachers.values()}
    assert kinds == {"StableDiffusionControlNetImg2ImgPipeline"}
    assert [teacher.settings["control"] for teacher in teachers.values()] == ["photo", "canny"]
    photos = some_photos(1, 64)
    seen = {}
    for control, teacher in teachers.items():

        def keep(_, __, given, control=control):
            seen[control] = given["controlnet_cond"][:1]

        teacher._pipeline.controlnet.register_forward_pre_hook(keep, with_kwargs=True)
        teacher.edit(photos, "a", [0])
    assert torch.allclose(seen["photo"], photos.add(1).div(2), atol=1e-6)
    assert set(seen["canny"].unique().tolist()) == {0.0, 1.0}


def test_loras_are_merged_into_the_weights(folder, tmp_path, monkeypatch):
    pipeline = open_pipeline(folder)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    shaken([weights for name, weights in pipeline.unet.named_parameters() if "lora_" in name])
    layers = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    file = str(tmp_path / "pytorch_lora_weights.safetensors")
    plain, none, half, whole = (
        DiffusersTeacher(str(folder), RING, QUICK, loras=loras)
        for loras in (None, {file: 0.0}, {file: 0.5}, {file: 1.0})
    )
    edits = [teacher.edit(some_photos(1), "a", [0]) for teacher in (plain, none, half, whole)]
    assert torch.allclose(edits[0], edits[1], atol=1e-5)
    assert not torch.allclose(edits[0], edits[2], atol=1e-3)
    assert not torch.allclose(edits[2], edits[3], atol=1e-3)
    assert len({teacher.settings["weights_sha256"] for teacher in (plain, half, whole)}) == 3
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when the package was imported
    monkeypatch.setattr("diffusers.loaders.lora_base.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--ring"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(Path(file).parent, repo / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("models--*"))
    for source in (str(Path(file).parent), "someone/ring"):
        teacher = DiffusersTeacher(str(folder), RING, QUICK, loras={source: 1.0})
        assert torch.equal(teacher.edit(some_photos(1), "a", [0]), edits[3])
    (tmp_path / "several").mkdir()
    with pytest.raises(FileNotFoundError, match=r"LoRA .*several holds no \.safetensors file"):
        DiffusersTeacher(str(folder), RING, QUICK, loras={str(tmp_path / "several"): 1.0})
    for name in ("a", "b"):
        shutil.copyfile(file, tmp_path / "several" / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"several files \(a\.safetensors, b\.safetensors\)"):
        DiffusersTeacher(str(folder), RING, QUICK, loras={str(tmp_path / "several"): 1.0})
    for source in (str(tmp_path / "nowhere"), "someone/other"):
        with pytest.raises(FileNotFoundError, match=rf"LoRA {source} is no file or folder here"):
            DiffusersTeacher(str(folder), RING, QUICK, loras={source: 1.0})


@pytest.mark.parametrize(
    "method",
    [TextualInversion("<ring>", "a"), DreamBoothLoRA("<ring>", rank=2), CustomDiffusion("<ring>", "a")],
    ids=lambda method: type(method).__name__,
)
def test_a_personalization_changes_edits_and_the_sets_identity(folder, tmp_path, method):
    plain = DiffusersTeacher(str(folder), RING, QUICK)
    taught = DiffusersTeacher(str(folder), RING, QUICK, personalization=stored(folder, method, tmp_path))
    edits = [teacher.edit(some_photos(1), RING["ring"], [0]) for teacher in (plain, taught)]
    assert not torch.equal(*edits)
    settings = [teacher.settings for teacher in (plain, taught)]
    assert settings[0] != settings[1]
    # a new token is a new word of the tokenizer as well
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} <= {"weights_sha256", "config_sha256"}
    assert str(tmp_path) not in str(settings)


def test_what_changes_a_pixel_is_in_the_settings(editors):
    source = editors("stable_diffusion")
    options = (
        {},
        {"arguments": {**QUICK, "strength": 0.75}},
        {"scheduler": "DDIMScheduler"},
        {"dtype": "bfloat16"},
        {"cache": DeepCache(2)},
        {"vae_tiling": True},
        {"attention_slicing": True},
        {"compile": True},
        {"batch_size": 4},
        {"batch_size": 4, "vae_slicing": True},
    )
    settings = [
        json.dumps(DiffusersTeacher(source, PROMPTS, **{"arguments": QUICK, **given}).settings) for given in options
    ]
    assert len(set(settings)) == len(options)
    same = DiffusersTeacher(source, PROMPTS, QUICK, vae_slicing=True, offload="model")
    assert json.dumps(same.settings) == settings[0]


@pytest.mark.parametrize(
    ("family", "file", "name", "value"),
    [
        ("stable_diffusion", "vae/config.json", "scaling_factor", 0.7),
        ("stable_diffusion_xl", "model_index.json", "force_zeros_for_empty_prompt", False),
        ("flux_kontext", "vae/config.json", "shift_factor", 0.5),
    ],
)
def test_what_the_models_files_say_is_in_the_settings(editors, tmp_path, family, file, name, value):
    folders = [shutil.copytree(editors(family), tmp_path / copy) for copy in ("one", "same", "other")]
    config = json.loads((folders[2] / file).read_text())
    assert config.get(name) != value
    (folders[2] / file).write_text(json.dumps({**config, name: value}))
    one, same, other = (DiffusersTeacher(str(folder), PROMPTS).settings for folder in folders)
    assert one == same
    assert {key for key in one if one[key] != other[key]} == {"config_sha256"}


def test_weights_are_kept_in_the_wanted_dtype(editors):
    teacher = DiffusersTeacher(editors("stable_diffusion"), PROMPTS, QUICK, dtype="bfloat16", scheduler="DDIMScheduler")
    assert {weights.dtype for weights in teacher.networks.parameters()} == {torch.bfloat16}
    edits = teacher.edit(some_photos(1), "a", [0])
    assert edits.dtype == torch.float32
    assert edits.isfinite().all()


def test_a_batch_that_does_not_fit_is_halved(editors, monkeypatch):
    teacher = DiffusersTeacher(editors("stable_diffusion"), PROMPTS, QUICK, batch_size=4)
    photos = some_photos(5)
    whole = teacher.edit(photos, "a", [1, 2, 3, 4, 5])
    sizes, kind = [], type(teacher._pipeline)
    call = kind.__call__

    def small_memory(self, prompt, **arguments):
        sizes.append(len(prompt) if isinstance(prompt, list) else 1)
        if sizes[-1] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return call(self, prompt, **arguments)

    monkeypatch.setattr(kind, "__call__", small_memory)
    largest = 2
    assert torch.allclose(teacher.edit(photos, "a", [1, 2, 3, 4, 5]), whole, atol=1e-4)
    assert sizes == [4, 2, 2, 1]
    largest = 0
    with pytest.raises(MemoryError, match=r"not even one photo of 32×32 fits .* give a smaller data\.size"):
        teacher.edit(photos, "a", [1, 2, 3, 4, 5])


def test_a_denoiser_is_compiled_once(editors, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    for family in ("stable_diffusion", "flux_kontext"):
        teacher = DiffusersTeacher(editors(family), PROMPTS, {"num_inference_steps": 2}, compile=True)
        for seed in range(2):
            teacher.edit(some_photos(1), "a", [seed])
    assert compiled[:1] == ["BasicTransformerBlock"]
    assert sorted(set(compiled[1:])) == ["BasicTransformerBlock", "FluxSingleTransformerBlock", "FluxTransformerBlock"]


def test_offload_leaves_the_weights_to_diffusers(editors, monkeypatch):
    teacher = DiffusersTeacher(editors("stable_diffusion"), PROMPTS, QUICK, offload="model")
    assert not list(teacher.parameters())
    with pytest.raises(ValueError, match="offload=model needs a GPU"):
        teacher.edit(some_photos(1), "a", [0])
    moved = []
    monkeypatch.setattr(type(teacher._pipeline), "enable_model_cpu_offload", lambda _, device: moved.append(device))
    teacher._make_ready(torch.device("cuda", 1))
    assert moved == [torch.device("cuda", 1)]


def test_the_origin_names_model_and_licence(editors, tmp_path):
    source = editors("turbo")
    assert DiffusersTeacher(source, PROMPTS, QUICK).origin == {"model": "turbo", "licence": "unknown"}
    assert DiffusersTeacher(source, PROMPTS, QUICK, licence="mit").origin["licence"] == "mit"
    folder = make_editor(tiny_editors.turbo, tmp_path / "licensed")
    card = "---\nlicense: other\nlicense_name: some-terms\nlicense_link: LICENSE.md\n---\n# A model\n"
    (folder / "README.md").write_text(card)
    found = DiffusersTeacher(str(folder), PROMPTS, QUICK).origin
    assert found == {"model": "licensed", "licence": "other, some-terms, LICENSE.md"}


def test_predict_writes_a_pair_set(folder, personalization, tmp_path):
    photos = make_photos(tmp_path / "photos", 3, 80)
    words = [
        "predict",
        f"-c={CONFIGS / 'synthesize' / 'personalised_teacher.yaml'}",
        f"--model.teacher.pipeline={folder}",
        f"--model.teacher.personalization={personalization}",
        "--model.teacher.prompts={ring: a photo of a <ring>}",
        "--model.teacher.arguments.num_inference_steps=4",
        "--model.size=32",
        f"--data.root={photos}",
        "--data.size=64",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    for batch in (1, 2):
        pairs = tmp_path / str(batch)
        writer = f"--trainer.callbacks=[{{class_path: PairWriter, init_args: {{root: {pairs}}}}}]"
        main([*words, f"--data.batch_size={batch}", f"--trainer.default_root_dir={pairs}", writer])
    lines = [(tmp_path / name / "pairs.jsonl").read_text().splitlines() for name in ("1", "2")]
    assert len(lines[0]) == 3
    assert sorted(lines[0]) == sorted(lines[1])
    row = json.loads(lines[0][0])
    assert (row["concept"], row["prompt"]) == ("ring", "a photo of a <ring>")


@pytest.mark.parametrize("file", sorted((CONFIGS / "synthesize").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_arguments_fit_their_pipelines(file):
    teacher = yaml.safe_load(file.read_text())["model"]["init_args"]["teacher"]
    if teacher["class_path"] != "DiffusersTeacher":
        return
    given = teacher["init_args"]
    check_arguments(editor_class(given["pipeline_class"]), given["arguments"])
    assert issubclass(getattr(diffusers, given.get("scheduler") or "DDIMScheduler"), diffusers.SchedulerMixin)
    assert given["prompts"]


class TestRefusals:
    # of diffusers 0.42's own call
    @pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated:UserWarning")
    def test_of_sources(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when the package was imported
        with pytest.raises(FileNotFoundError, match=r"is no local folder with a model_index\.json"):
            DiffusersTeacher("someone/something", PROMPTS)
        with pytest.raises(ValueError, match="holds a DiTPipeline, of which diffusers has no image-to-image form"):
            DiffusersTeacher(str(make_dit_pipeline(tmp_path / "dit")), PROMPTS)
        with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors does not exist"):
            DiffusersTeacher(str(tmp_path / "nowhere.safetensors"), PROMPTS)
        (tmp_path / "a.safetensors").touch()
        with pytest.raises(ValueError, match="does not say which pipeline it is of; give a pipeline_class"):
            DiffusersTeacher(str(tmp_path / "a.safetensors"), PROMPTS)
        with pytest.raises(ValueError, match="config is for single files"):
            DiffusersTeacher(str(folder), PROMPTS, config="x")
        with pytest.raises(FileNotFoundError, match="ControlNet 'someone/control' is no local folder"):
            DiffusersTeacher(str(folder), PROMPTS, controlnet="someone/control")

    def test_of_weights_for_inpainting(self, folder, tmp_path):
        pipeline = open_pipeline(folder)
        config = {**pipeline.unet.config, "in_channels": 2 * pipeline.vae.config.latent_channels + 1}
        pipeline.unet = type(pipeline.unet).from_config(config)
        pipeline.save_pretrained(tmp_path / "inpainting")
        with pytest.raises(ValueError, match="needs a U-Net of 4 input channels, the stored one has 9"):
            DiffusersTeacher(str(tmp_path / "inpainting"), PROMPTS)

    def test_every_image_to_image_form_has_a_vae_or_is_refused(self):
        def refusal(name):
            try:
                editor_class(name)
            except ValueError as error:
                return str(error)
            return None

        names = [editor.__name__ for editor in AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.values()]
        refused = {name: message for name in names if (message := refusal(name)) is not None}
        assert all("has no vae" in message for message in refused.values())
        assert {"IFImg2ImgPipeline", "KandinskyImg2ImgCombinedPipeline"} <= set(refused)
        assert len(refused) < len(names) / 2

    @pytest.mark.parametrize(
        "kind", ["StableDiffusionPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionInpaintPipeline"]
    )
    def test_of_pipelines_that_edit_no_photos(self, kind):
        with pytest.raises(ValueError, match=f"{kind} does not edit photos"):
            DiffusersTeacher("any/thing", PROMPTS, pipeline_class=kind)
        with pytest.raises(ValueError, match="has no pipeline 'Img2Img'"):
            DiffusersTeacher("any/thing", PROMPTS, pipeline_class="Img2Img")

    def test_of_arguments_before_anything_is_loaded(self):
        kind = "StableDiffusionImg2ImgPipeline"
        with pytest.raises(ValueError, match=r"takes no image_guidance_scale .* it takes clip_skip, .* strength"):
            DiffusersTeacher("any/thing", PROMPTS, {"image_guidance_scale": 1.5}, kind)
        with pytest.raises(ValueError, match="takes no generator, num_images_per_prompt from a teacher's arguments"):
            DiffusersTeacher("any/thing", PROMPTS, {"num_images_per_prompt": 2, "generator": None}, kind)
        with pytest.raises(ValueError, match=r"strength is 0\.1 of 5 steps"):
            DiffusersTeacher("any/thing", PROMPTS, {"strength": 0.1, "num_inference_steps": 5}, kind)
        with pytest.raises(ValueError, match=r"strength is 0 of 50 steps"):
            DiffusersTeacher("any/thing", PROMPTS, {"strength": 0}, kind)
        with pytest.raises(ValueError, match="prompts is empty"):
            DiffusersTeacher("any/thing", {})
        with pytest.raises(ValueError, match="batch_size is 0"):
            DiffusersTeacher("any/thing", PROMPTS, batch_size=0)
        with pytest.raises(ValueError, match="DeepCache does something else at each step"):
            DiffusersTeacher("any/thing", PROMPTS, cache=DeepCache(), compile=True)

    def test_of_what_does_not_go_with_the_pipeline(self, editors, folder, personalization, tmp_path):
        with pytest.raises(ValueError, match="takes no image_guidance_scale"):
            DiffusersTeacher(str(folder), PROMPTS, {"image_guidance_scale": 1.5})
        with pytest.raises(ValueError, match="has no scheduler 'Euler'"):
            DiffusersTeacher(str(folder), PROMPTS, scheduler="Euler")
        with pytest.raises(ValueError, match="has a U-Net; take DeepCache"):
            DiffusersTeacher(str(folder), PROMPTS, cache=FirstBlockCache())
        with pytest.raises(ValueError, match="attention_slicing is for U-Nets, FluxKontextPipeline has none"):
            DiffusersTeacher(editors("flux_kontext"), PROMPTS, attention_slicing=True)
        with pytest.raises(ValueError, match=r"taught the token <ring>, which none of the prompts holds \(a photo\)"):
            DiffusersTeacher(str(folder), {"ring": "a photo"}, personalization=personalization)
        with pytest.raises(FileNotFoundError, match="holds none of learned_embeds"):
            DiffusersTeacher(str(folder), PROMPTS, personalization=tmp_path)
        with pytest.raises(ValueError, match="photos are 30×32, the pipeline's step is 4"):
            DiffusersTeacher(str(folder), PROMPTS, QUICK).edit(some_photos(1)[:, :, :30], "a", [0])

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            (torch.zeros(1, 3, 48, 48), "returned 48×48 pixels for a photo of 32×32"),
            (torch.zeros(2, 3, 32, 32), "returned 2 pictures for 1 photos"),
            ([torch.zeros(3, 32, 32)], "returned no batch of pictures"),
            (torch.zeros(1, 5, 3, 32, 32), "returned no batch of pictures"),
        ],
    )
    def test_of_what_a_pipeline_returns(self, editors, monkeypatch, returned, message):
        teacher = DiffusersTeacher(editors("stable_diffusion"), PROMPTS, QUICK)
        output = type("Output", (), {"images": returned})
        monkeypatch.setattr(type(teacher._pipeline), "__call__", lambda *_, **__: output)
        with pytest.raises(ValueError, match=message):
            teacher.edit(some_photos(1), "a", [0])

    def test_a_flagged_edit_is_withheld(self, editors, monkeypatch):
        teacher = DiffusersTeacher(editors("stable_diffusion"), PROMPTS, QUICK, batch_size=2)
        output = type("Output", (), {"images": torch.zeros(2, 3, 32, 32), "nsfw_content_detected": [False, True]})
        monkeypatch.setattr(type(teacher._pipeline), "__call__", lambda *_, **__: output)
        edits = teacher.edit(some_photos(2), "a", [0, 1])
        assert edits[0].isfinite().all()
        assert edits[1].isnan().all()
