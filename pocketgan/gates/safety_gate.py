"""Edits that a safety checker objects to."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from typing_extensions import override

from pocketgan.gates.gate import PairGate, Scores


class SafetyGate(PairGate):
    """Stable Diffusion's safety checker on stored edits, whichever teacher made them.

    The score is how far the nearest of the checker's 17 concepts lies above its own limit, as in diffusers'
    ``StableDiffusionSafetyChecker.forward_onnx``, which flags a picture above 0; ``forward`` rounds the sums to 3
    digits first.

    Args:
        model: Repo id or local folder of the checker with its CLIPImageProcessor.
        largest_excess: A pair is refused above it; lower is stricter.
    """

    score_names = ("safety_excess",)

    def __init__(self, model: str = "CompVis/stable-diffusion-safety-checker", largest_excess: float = 0.0) -> None:
        super().__init__()
        self.model, self.largest_excess = model, largest_excess
        self._checker: Any = None

    @property
    @override
    def measurement(self) -> dict[str, Any]:
        return {"model": self.model}

    @override
    def prepare(self) -> None:
        if self._checker is not None:
            return
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        try:
            self._processor = CLIPImageProcessor.from_pretrained(self.model)
            self._checker = StableDiffusionSafetyChecker.from_pretrained(self.model).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"safety checker {self.model!r} is no local folder and cannot be reached as a repo id from here; on "
                "a machine with access run `hf download CompVis/stable-diffusion-safety-checker --local-dir FOLDER`, "
                "copy FOLDER to this machine and give its path"
            ) from error

    @override
    @torch.no_grad()
    def scores(self, photo: Tensor, edit: Tensor, concept: str, prompt: str) -> Scores:
        from pocketgan.images import to_image

        self.prepare()
        checker = self._checker
        pixels = self._processor(to_image(edit), return_tensors="pt").pixel_values.to(checker.device)
        embedded = checker.visual_projection(checker.vision_model(pixels)[1])
        special = cosine_similarity(embedded, checker.special_care_embeds) - checker.special_care_embeds_weights
        # a picture that needs special care is held to a stricter limit
        stricter = 0.01 if bool((special > 0).any()) else 0.0
        excess = cosine_similarity(embedded, checker.concept_embeds) - checker.concept_embeds_weights + stricter
        return {"safety_excess": round(float(excess.max()), 4)}

    @override
    def margin(self, scores: Mapping[str, float]) -> float:
        return self.largest_excess - scores["safety_excess"]

    @override
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        excess = scores["safety_excess"]
        if excess <= self.largest_excess:
            return None
        return f"the safety checker objects: {excess:+.3f}, at most {self.largest_excess:g}"
