"""What each adapter trains, identity at the start, files, folding into a plain transformer."""

import copy

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from tiny_dit import make_dit, make_pipeline

from pocketgan.adapters import (
    AllWeights,
    BitFit,
    DiffFit,
    DiffusionAdapter,
    DiffusionLoRA,
    load_diffusion_adapter,
    load_trained,
    merge_diffusion_adapter,
    null_label,
    prepare_classes,
    save_diffusion_adapter,
    trained_parameters,
)
from pocketgan.digest import weights_digest

BRANCHES = ("attention", "feed_forward")
ADAPTERS = [
    DiffFit(),
    DiffFit(1.0, ("query_key_value", "attention", "feed_forward_hidden", "feed_forward")),
    DiffFit(0.25, BRANCHES),
    BitFit(),
    DiffusionLoRA(2),
    DiffusionLoRA(3, ("attn1.to_out.0", "ff.net.0.proj", "ff.net.2")),
    AllWeights(),
]
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: f"{type(one).__name__}{one.settings}")


def inputs(batch=3, side=4):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, side, side, generator=generator)
    return latents, torch.tensor([5, 500, 900])[:batch], torch.tensor([0, 1, 2])[:batch]


@torch.no_grad()
def output(dit, *, side=4):
    latents, timesteps, labels = inputs(side=side)
    return dit.eval()(latents, timestep=timesteps, class_labels=labels).sample


def adapted(adapter, classes=10, new=False):
    dit = make_dit()
    prepare_classes(dit, classes, new)
    adapter.add(dit)
    return dit


def shaken(dit):
    """The same with everything that trains moved away from where it started."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained_parameters(dit).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return dit


def test_every_adapter_is_tested():
    assert {type(adapter) for adapter in ADAPTERS} == set(DiffusionAdapter.__subclasses__())


@pytest.fixture(scope="module")
def xl():
    """DiT-XL/2 without values."""
    with torch.device("meta"):
        return DiTTransformer2DModel(in_channels=4, out_channels=8)


def test_the_published_name_list_would_train_301_million(xl):
    listed = ("bias", "norm", "gamma", "y_embed")
    taken = sum(value.numel() for name, value in xl.named_parameters() if any(part in name for part in listed))
    assert (taken, sum(map(torch.numel, xl.parameters()))) == (301_210_016, 749_826_464)


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        # 1152 features: biases outside the time embedding, 102 rows of one class table
        (BitFit(), 487_328 + 102 * 1152),
        (DiffFit(0.5, BRANCHES), 604_832 + 14 * 2 * 1152),
        (DiffFit(1.0, BRANCHES), 604_832 + 28 * 2 * 1152),
        (DiffFit(), 604_832 + 14 * 5 * 1152),
        (DiffFit(0.5, ("query_key_value", "attention", "feed_forward_hidden", "feed_forward")), 749_984),
        (DiffusionLoRA(8), 1_149_696),  # the paper's 1.15 M
        (DiffusionLoRA(16), 2_181_888),  # the paper's 2.18 M
    ],
)
def test_trained_parameters_of_dit_xl(xl, adapter, expected):
    dit = copy.deepcopy(xl)
    prepare_classes(dit, 101, new=True)
    adapter.add(dit)
    assert sum(map(torch.numel, trained_parameters(dit).values())) == expected


@each_adapter
def test_output_is_the_same_at_the_start(adapter):
    before = output(make_dit())
    dit = adapted(adapter)
    assert torch.equal(output(dit), before)
    assert not torch.allclose(output(shaken(dit)), before, atol=1e-2)


@each_adapter
def test_a_gradient_reaches_all_that_trains_and_nothing_else(adapter):
    dit = shaken(adapted(adapter))  # LoRA's A has no gradient while B is 0
    latents, timesteps, labels = inputs()
    dit(latents, timestep=timesteps, class_labels=labels).sample.square().sum().backward()
    for name, parameter in dit.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif not name.endswith("to_k.base_layer.bias") and not name.endswith("to_k.bias"):  # softmax cancels a shift
            assert parameter.grad.abs().max() > 0, name


def test_what_diff_fit_and_bit_fit_train_by_kind():
    kinds = {
        kind: {name.replace("base_layer.", "") for name in trained_parameters(adapted(adapter))}
        for kind, adapter in (("bit", BitFit()), ("diff", DiffFit(0.5, BRANCHES)))
    }
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    plain = {name for name, _ in make_dit().named_parameters()}
    assert kinds["bit"] - {table} == {
        name for name in plain if name.endswith(".bias") and "timestep_embedder" not in name
    }
    assert "transformer_blocks.1.norm1.linear.bias" in kinds["bit"]
    assert not any(name.endswith("norm1.linear.weight") for name in kinds["diff"])
    assert kinds["diff"] - kinds["bit"] == {
        f"transformer_blocks.{block}.{layer}.ia3_l.default"
        for block in (0, 1)
        for layer in ("attn1.to_out.0", "ff.net.2")
    }


def test_affine_norms_train_by_type():
    dit = make_dit(norm_elementwise_affine=True)
    prepare_classes(dit, 10, new=False)
    found = {}
    for adapter in (DiffFit(), BitFit()):
        copied = copy.deepcopy(dit)
        adapter.add(copied)
        found[type(adapter)] = {name for name in trained_parameters(copied) if name.endswith("norm3.weight")}
    assert found == {DiffFit: {f"transformer_blocks.{block}.norm3.weight" for block in range(4)}, BitFit: set()}


def test_scale_factors_of_a_branch_by_hand():
    """γ on a branch's last layer is γ on the branch."""
    dit = adapted(DiffFit(0.25, ("feed_forward",)))
    layer = dit.transformer_blocks[0].ff.net[2]
    gamma = torch.linspace(0.5, 2, 16)
    with torch.no_grad():
        layer.ia3_l["default"].copy_(gamma[:, None])
    hidden = torch.randn(2, 5, 64)
    torch.testing.assert_close(layer(hidden), gamma * layer.base_layer(hidden))
    assert not hasattr(dit.transformer_blocks[1].ff.net[2], "ia3_l")


def test_new_classes_keep_the_row_for_none():
    dit = make_dit()
    null = dit.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight[-1].clone()
    prepare_classes(dit, 3, new=True)
    tables = {module for module in dit.modules() if isinstance(module, LabelEmbedding)}
    (table,) = tables
    assert (null_label(dit), table.embedding_table.weight.shape) == (3, (4, 16))
    assert torch.equal(table.embedding_table.weight[3], null)
    assert table.embedding_table.weight[:3].std() < 0.03
    # in training mode, too, no block drops labels by itself
    latents, timesteps, labels = inputs()
    dit.train()
    both = [dit(latents, timestep=timesteps, class_labels=labels).sample for _ in range(2)]
    assert torch.equal(*both)


def test_tables_that_differ_stay_one_a_block():
    dit = make_dit()
    with torch.no_grad():
        dit.transformer_blocks[2].norm1.emb.class_embedder.embedding_table.weight.add_(1)
    prepare_classes(dit, 3, new=True)
    assert len({id(block.norm1.emb.class_embedder) for block in dit.transformer_blocks}) == 4


@each_adapter
def test_stored_and_put_back(adapter, tmp_path):
    base = make_dit()
    digest = weights_digest(base)
    trained = shaken(adapted(adapter, 3, new=True))
    save_diffusion_adapter(tmp_path / "adapter", adapter, trained_parameters(trained), ["a", "b", "c"], True, digest)
    torch.manual_seed(5)  # new rows are drawn, then replaced
    assert load_diffusion_adapter(base, tmp_path / "adapter") == ["a", "b", "c"]
    assert torch.equal(output(base), output(trained))
    with pytest.raises(ValueError, match="trained on another base"):
        load_diffusion_adapter(make_dit(seed=1), tmp_path / "adapter")


class _QuarterDiffFit(DiffFit):
    """A user's own, below a class of ours."""

    def __init__(self, depth=0.25, layout=("attention",)):
        super().__init__(depth, layout)


def test_a_users_own_adapter_is_found_when_it_is_put_back(tmp_path):
    base, adapter = make_dit(), _QuarterDiffFit()
    digest = weights_digest(base)
    trained = shaken(adapted(adapter, 3, new=True))
    save_diffusion_adapter(tmp_path, adapter, trained_parameters(trained), ["a", "b", "c"], True, digest)
    load_diffusion_adapter(base, tmp_path)
    assert torch.equal(output(base), output(trained))


@each_adapter
@pytest.mark.parametrize("classes", [3, 12])
def test_merged_is_a_plain_transformer(adapter, classes, tmp_path):
    trained = shaken(adapted(adapter, classes, new=True))
    expected = output(trained)
    merge_diffusion_adapter(trained).save_pretrained(tmp_path)
    assert torch.equal(output(trained), expected)  # left as it was
    plain = DiTTransformer2DModel.from_pretrained(tmp_path)
    assert type(plain.transformer_blocks[0].attn1.to_q) is torch.nn.Linear
    assert plain.config.num_embeds_ada_norm == max(classes, 10)
    torch.testing.assert_close(output(plain), expected, atol=1e-5, rtol=1e-5)
    # "no class" is the last row there
    latents, timesteps, _ = inputs(2)
    with torch.no_grad():
        ours = trained(latents, timestep=timesteps, class_labels=torch.full((2,), null_label(trained))).sample
        theirs = plain(latents, timestep=timesteps, class_labels=torch.full((2,), max(classes, 10))).sample
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_merged_runs_in_diffusers_pipeline_with_guidance(tmp_path):
    pipeline = DiTPipeline.from_pretrained(make_pipeline(tmp_path))
    dit = make_dit(num_embeds_ada_norm=1000)
    prepare_classes(dit, 3, new=True)
    adapter = DiffFit()
    adapter.add(dit)
    pipeline.transformer = merge_diffusion_adapter(dit)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(class_labels=[0, 2], guidance_scale=1.5, num_inference_steps=2, output_type="np").images
    assert pictures.shape == (2, 32, 32, 3)


def test_larger_latents_keep_the_position_grid_of_the_smaller_model():
    """PE(2i, 2j) = PE(i, j); a transformer built for the larger size has another grid."""
    dit = make_dit(sample_size=8)
    coarse = dit.pos_embed.pos_embed.reshape(4, 4, -1)

    def positions(model, side):
        model.pos_embed.proj.weight.data.zero_()
        model.pos_embed.proj.bias.data.zero_()
        return model.pos_embed(torch.zeros(1, 4, side, side)).reshape(side // 2, side // 2, -1)

    fine = positions(dit, 16)
    torch.testing.assert_close(fine[::2, ::2], coarse)
    assert not torch.allclose(positions(make_dit(sample_size=16), 16)[::2, ::2], coarse, atol=1e-2)


@pytest.mark.parametrize(
    "adapter", [DiffFit(), BitFit(), DiffusionLoRA(), AllWeights()], ids=lambda one: type(one).__name__
)
def test_other_networks_are_refused(adapter):
    other = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="Sequential has no transformer_blocks; adapters take"):
        adapter.add(other)
    with pytest.raises(ValueError, match="Sequential has no class table"):
        prepare_classes(other, 3, new=True)
    dit = make_dit()
    dit.transformer_blocks[1].ff = torch.nn.Identity()
    with pytest.raises(
        TypeError, match=r"transformer_blocks\.1 of DiTTransformer2DModel has no Linear ff\.net\.0\.proj"
    ):
        adapter.add(dit)


def test_refusals(tmp_path):
    for depth in (0, 1.5):
        with pytest.raises(ValueError, match=f"depth is {depth}"):
            DiffFit(depth)
    with pytest.raises(ValueError, match=r"layout is \[\]"):
        DiffFit(layout=())
    with pytest.raises(ValueError, match="rank is 0"):
        DiffusionLoRA(0)
    with pytest.raises(ValueError, match="has an adapter already"):
        BitFit().add(adapted(DiffFit()))
    with pytest.raises(ValueError, match="knows 10 classes, the data hold 3; set new_classes to true"):
        prepare_classes(make_dit(), 3, new=False)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter\.safetensors"):
        load_diffusion_adapter(make_dit(), tmp_path)
    tensors = dict(trained_parameters(adapted(BitFit())))
    with pytest.raises(ValueError, match=r"not of this adapter: 20 missing .* 10 unexpected"):
        load_trained(adapted(DiffFit()), tensors)
    with pytest.raises(ValueError, match=r"is \(11, 16\) there and \(4, 16\) here"):
        load_trained(adapted(BitFit(), 3, new=True), tensors)
