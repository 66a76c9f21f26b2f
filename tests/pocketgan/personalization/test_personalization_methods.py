"""What trains, what is stored, and that the pipeline afresh from disk plus the stored files is the trained one."""

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor, CustomDiffusionAttnProcessor2_0
from safetensors.torch import load_file
from tiny import CONFIGS
from tiny_pipeline import PROMPT, make_pipeline, open_pipeline, picture, shaken, tiny_tokenizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pocketgan.personalization import (
    CustomDiffusion,
    DreamBoothLoRA,
    PersonalizationMethod,
    TextualInversion,
    load_personalization,
    load_pipeline,
)

METHODS = {
    "textual_inversion": lambda: TextualInversion("<ring>", "a"),
    "dreambooth_lora": lambda: DreamBoothLoRA("<ring>", rank=2),
    "dreambooth_lora_with_token": lambda: DreamBoothLoRA("<ring>", "a", rank=2),
    "custom_diffusion": lambda: CustomDiffusion("<ring>", "a"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


def test_every_method_is_here():
    assert {type(make()) for make in METHODS.values()} == set(PersonalizationMethod.__subclasses__())


def prepared(folder, name):
    pipeline, method = open_pipeline(folder), METHODS[name]()
    method.prepare(pipeline)
    return pipeline, method


@pytest.mark.parametrize("name", METHODS)
def test_round_trip(folder, tmp_path, name):
    before = picture(open_pipeline(folder))
    pipeline, method = prepared(folder, name)
    shaken(method.trainable_parameters())
    trained = picture(pipeline)
    assert (trained - before).abs().max() > 0.01
    method.save(tmp_path)
    loaded = open_pipeline(folder)
    load_personalization(loaded, tmp_path)
    torch.testing.assert_close(picture(loaded), trained, atol=1e-5, rtol=0)


def test_diffusers_own_loaders(folder, tmp_path):
    for name, load in (
        ("textual_inversion", lambda pipeline, path: pipeline.load_textual_inversion(path)),
        ("dreambooth_lora", lambda pipeline, path: pipeline.load_lora_weights(path)),
    ):
        pipeline, method = prepared(folder, name)
        shaken(method.trainable_parameters())
        (tmp_path / name).mkdir()
        method.save(tmp_path / name)
        loaded = open_pipeline(folder)
        load(loaded, str(tmp_path / name))
        torch.testing.assert_close(picture(loaded), picture(pipeline), atol=1e-5, rtol=0)


def test_load_attn_procs_still_needs_the_pipeline(folder, tmp_path):
    """Fails once diffusers sets the processors without ``_pipeline``; load_custom_diffusion can go then."""
    _, method = prepared(folder, "custom_diffusion")
    method.save(tmp_path)
    loaded = open_pipeline(folder)
    loaded.unet.load_attn_procs(str(tmp_path), weight_name="pytorch_custom_diffusion_weights.safetensors")
    assert not any(isinstance(part, CustomDiffusionAttnProcessor) for part in loaded.unet.modules())


@pytest.mark.parametrize("name", METHODS)
def test_files_hold_what_trains_and_nothing_else(folder, tmp_path, name):
    _, method = prepared(folder, name)
    method.save(tmp_path)
    stored = sum(tensor.numel() for file in tmp_path.iterdir() for tensor in load_file(file).values())
    assert stored == sum(weight.numel() for weight in method.trainable_parameters()) > 0


@pytest.mark.parametrize("name", ["dreambooth_lora", "custom_diffusion"])
def test_a_prepared_network_predicts_as_before(folder, name):
    prompt = "a photo of a cat"
    before = picture(open_pipeline(folder), prompt)
    pipeline, _ = prepared(folder, name)
    torch.testing.assert_close(picture(pipeline, prompt), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reaches_what_trains_alone(folder, name):
    pipeline, method = prepared(folder, name)
    networks = (pipeline.text_encoder, pipeline.unet)
    before = [{key: value.clone() for key, value in network.state_dict().items()} for network in networks]
    trained = {id(weight) for weight in method.trainable_parameters()}
    tokens = pipeline.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW(method.trainable_parameters(), 0.1)
    torch.manual_seed(0)
    for _ in range(2):  # LoRA's A moves once B is no longer 0
        states = pipeline.text_encoder(tokens)[0]
        pipeline.unet(torch.randn(1, 4, 16, 16), 10, states).sample.square().mean().backward()
        optimizer.step()
    for network, old in zip(networks, before, strict=True):
        weights = dict(network.named_parameters())
        for key, value in network.state_dict().items():
            expected = key in weights and id(weights[key]) in trained
            assert torch.equal(value, old[key]) != expected, key


def test_the_new_token_begins_as_its_initializer(folder):
    pipeline, method = prepared(folder, "textual_inversion")
    [embedding] = method.trainable_parameters()
    table = open_pipeline(folder).text_encoder.get_input_embeddings().weight
    letter = pipeline.tokenizer.convert_tokens_to_ids("a</w>")
    torch.testing.assert_close(embedding, table[letter][None])
    ids = pipeline.tokenizer(PROMPT, add_special_tokens=False).input_ids
    assert ids[-1] == len(table)


def test_no_gradient_through_the_first_tokens_keys_and_values():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    attention = next(part for part in unet.modules() if getattr(part, "is_cross_attention", False))
    states = torch.randn(1, 3, 8, requires_grad=True)
    processor = CustomDiffusionAttnProcessor2_0(train_q_out=False, hidden_size=8, cross_attention_dim=8)
    processor(attention, torch.randn(1, 4, 8), states).square().sum().backward()
    assert not states.grad[:, 0].any()
    assert states.grad[:, 1:].all()


def test_bad_words_are_refused(folder):
    for make in (TextualInversion, DreamBoothLoRA, CustomDiffusion):
        with pytest.raises(ValueError, match="has the token 'a' already"):
            make("a", "b").prepare(open_pipeline(folder))
        with pytest.raises(ValueError, match="the initializer 'cat' is 3 tokens"):
            make("<ring>", "cat").prepare(open_pipeline(folder))
    twice = open_pipeline(folder)
    TextualInversion("<ring>", "a").prepare(twice)
    with pytest.raises(ValueError, match="has the token '<ring>' already"):
        TextualInversion("<ring>", "a").prepare(twice)


def test_bad_arguments_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when the package was imported
    with pytest.raises(ValueError, match="rank is 0"):
        DreamBoothLoRA("sks", rank=0)
    with pytest.raises(ValueError, match="prior_weight is -1"):
        CustomDiffusion("<ring>", "a", prior_weight=-1)
    with pytest.raises(FileNotFoundError, match="holds none of learned_embeds"):
        load_personalization(open_pipeline(folder), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cannot be reached as a repo id .*hf download"):
        load_pipeline("someone/something")
    with pytest.raises(FileNotFoundError, match=r"is no local folder with a model_index\.json"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    with pytest.raises(ValueError, match="holds a DiTPipeline; personalization takes"):
        load_pipeline(str(tmp_path))


class StableDiffusion15:
    """Text encoder and U-Net of Stable Diffusion 1.4 and 1.5 without memory, with a tiny tokenizer."""

    def __init__(self):
        self.tokenizer, self.vae = tiny_tokenizer(), nn.Identity()
        with torch.device("meta"):
            self.text_encoder = CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            )
            self.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


# LoRA of rank 4 on q, k, v and out of 32 attention layers: diffusers' example says 797,184; with the feed-forward's
# first layer, of 16 blocks of widths 5 × 320, 5 × 640 and 6 × 1280: 4 · (width + 8 width) more of each, 449,280.
# Custom Diffusion: K and V are 768 × width in each of the 16 blocks.
SIZES = {
    "textual_inversion": 768,
    "dreambooth_lora": 797_184 + 36 * (5 * 320 + 5 * 640 + 6 * 1280) + 768,
    "custom_diffusion": 2 * 768 * (5 * 320 + 5 * 640 + 6 * 1280) + 768,
}


@pytest.mark.parametrize("name", [*SIZES, *(f"{name}_clip_score" for name in SIZES)])
def test_shipped_configs_fit_stable_diffusion(name):
    pipeline = StableDiffusion15()
    assert sum(weight.numel() for weight in pipeline.unet.parameters()) == 859_520_964
    settings = yaml.safe_load((CONFIGS / "personalization" / f"{name}.yaml").read_text())["model"]["init_args"][
        "method"
    ]
    arguments = {**settings["init_args"], "initializer_token": "a"}
    classes = {method.__name__: method for method in PersonalizationMethod.__subclasses__()}
    method = classes[settings["class_path"]](**arguments)
    method.prepare(pipeline)
    weights = method.trainable_parameters()
    assert all(weight.is_meta for weight in weights)
    assert sum(weight.numel() for weight in weights) == SIZES[name.removesuffix("_clip_score")]


@pytest.mark.parametrize(
    ("name", "rate", "images", "preset"),
    [
        # DVAR's README: its rate times the batch of 2, and times 2 again with prior preservation; steps times the batch
        ("textual_inversion", 5e-3 * 2, 6100 * 2, "textual_inversion"),
        ("dreambooth_lora", 5e-4 * 2, 1000 * 2, "dreambooth_lora"),
        ("custom_diffusion", 1e-5 * 2 * 2, 500 * 2, "custom_diffusion"),
        ("textual_inversion_clip_score", 5e-3 * 2, 6100 * 2, None),
        ("dreambooth_lora_clip_score", 5e-4 * 2, 1000 * 2, None),
        ("custom_diffusion_clip_score", 1e-5 * 2 * 2, 500 * 2, None),
    ],
)
def test_shipped_configs_have_the_papers_numbers(name, rate, images, preset):
    config = yaml.safe_load((CONFIGS / "personalization" / f"{name}.yaml").read_text())
    optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["weight_decay"]) == (pytest.approx(rate), 1e-2)
    assert (config["data"]["init_args"]["batch_size"], config["budget"]["images"]) == (2, images)
    rule = config["early_stopping"]["init_args"]
    assert rule.get("preset") == preset
    if preset is None:
        expected = (0.04, 3) if "dreambooth" in name else (0.02, 6)
        assert (rule["tolerance"], rule["patience"], rule["every_n_batches"]) == (*expected, 50)
