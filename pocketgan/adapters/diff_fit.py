"""DiffFit: biases, norms, the class table and scale factors."""

import re
from typing import Any, Literal

from peft import IA3Config, inject_adapter_in_model
from torch import nn

from pocketgan.adapters.diffusion_adapter import DiffusionAdapter, biases, class_weights, freeze, norm_weights

ScaledOutput = Literal["query_key_value", "attention", "feed_forward_hidden", "feed_forward"]
LAYERS: dict[ScaledOutput, tuple[str, ...]] = {
    "query_key_value": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention": ("attn1.to_out.0",),
    "feed_forward_hidden": ("ff.net.0.proj",),
    "feed_forward": ("ff.net.2",),
}
GAMMA = "ia3_l"  # PEFT's name for it


class DiffFit(DiffusionAdapter):
    """DiffFit (Xie et al., ICCV 2023, arXiv 2304.06648, figure 4): biases, affine norms, class table, scale factors γ.

    γ is 1 at first, so that nothing changes, and multiplies a layer's output, bias included, feature by feature. It is
    PEFT's IA3 on the layer, which does just that, folds into weight and bias, and takes a pattern for the blocks. A γ
    on a branch before it is added, as in the figure, is the same function as one on the branch's last layer, since the
    gate between them is a product, too. Where a port has both (Diffusion-Tuning's models.py), only their product shows
    in the output: here is one.

    The 0.83 M recalled for DiT-XL/2 with 101 classes is none of the layouts that can be read in public code; ours are
    counted in docs/difffit.md.

    Args:
        depth: Share of the blocks, from the first, that get γ; the ports have a half, 14 of 28.
        layout: Outputs with a γ. ``attention`` and ``feed_forward`` are the figure's branches, D weights each;
            ``query_key_value`` has 3D more, as in Diffusion-Tuning; ``feed_forward_hidden`` 4D, as in DiT-3D.

    Raises:
        ValueError: No γ is asked for.
    """

    def __init__(
        self, depth: float = 0.5, layout: tuple[ScaledOutput, ...] = ("query_key_value", "attention", "feed_forward")
    ) -> None:
        if not 0 < depth <= 1:
            raise ValueError(f"depth is {depth}; give a share of the blocks above 0 and up to 1, or use BitFit")
        unknown = sorted(set(layout) - set(LAYERS))
        if unknown or not layout:
            raise ValueError(f"layout is {list(layout)}; name one or more of {', '.join(LAYERS)}, or use BitFit")
        self.depth, self.layout = depth, tuple(layout)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor as plain JSON values."""
        return {"depth": self.depth, "layout": list(self.layout)}

    def add(self, transformer: nn.Module) -> None:
        """Add γ = 1 and mark what trains; see ``DiffusionAdapter.add``."""
        blocks = max(round(freeze(transformer) * self.depth), 1)
        layers = [layer for output in self.layout for layer in LAYERS[output]]
        # whole names: of a list PEFT would match every layer that ends so, attn2's too
        numbers, names = "|".join(map(str, range(blocks))), "|".join(map(re.escape, layers))
        config = IA3Config(target_modules=rf"transformer_blocks\.({numbers})\.({names})", feedforward_modules=[])
        inject_adapter_in_model(config, transformer)
        for parameter in (*biases(transformer), *norm_weights(transformer), *class_weights(transformer)):
            parameter.requires_grad_(True)
