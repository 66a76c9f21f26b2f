"""A frozen CLIP text encoder, E2GAN's choice."""

from pathlib import Path

import torch
from torch import Tensor

from pocketgan.digest import weights_digest
from pocketgan.text.text_encoder import TextEncoder


class CLIPTextEncoder(TextEncoder):
    """Token features of the prompt from a frozen CLIP text encoder of transformers.

    Each prompt is encoded once, on the CPU, and kept. The encoder is no submodule: it enters neither the
    checkpoint nor the EMA.

    Args:
        model: Repo id (for example ``openai/clip-vit-large-patch14``) or local folder with tokenizer and encoder;
            of a diffusers pipeline, the folder that holds ``tokenizer`` and ``text_encoder``.

    Raises:
        FileNotFoundError: The model is neither a local folder nor can it be loaded by repo id.
    """

    learns = False

    def __init__(self, model: str) -> None:
        super().__init__()
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = Path(model)
        pipeline = (folder / "text_encoder").is_dir()
        try:
            tokenizer = CLIPTokenizer.from_pretrained(model, **({"subfolder": "tokenizer"} if pipeline else {}))
            encoder = CLIPTextModel.from_pretrained(model, **({"subfolder": "text_encoder"} if pipeline else {}))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"text encoder {model!r} could not be loaded ({str(error).splitlines()[0]}); give a repo id that this "
                "machine can reach or a folder saved by CLIPTextModel.save_pretrained and "
                "CLIPTokenizer.save_pretrained, or use ConceptTokens, which needs no download"
            ) from error
        self._encoder = (tokenizer, encoder.eval().requires_grad_(False))
        self._encoded: dict[str, Tensor] = {}
        self.token_size = encoder.config.hidden_size

    @property
    def identity(self) -> str:
        """Its kind and weights; a name would differ between a repo id and a local folder."""
        return f"{super().identity}, weights {weights_digest(self._encoder[1])[:12]}"

    def add_concepts(self, concepts: list[str]) -> None:
        """Nothing to add: any prompt can be encoded."""

    def learn_only(self, concepts: list[str]) -> None:
        """Nothing to freeze: it never learns."""

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        tokenizer, encoder = self._encoder
        text = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
        return encoder(text.input_ids).last_hidden_state[0]

    def forward(self, concepts: list[str], prompts: list[str]) -> Tensor:  # noqa: ARG002
        """Encode prompts; see ``TextEncoder.forward``. Tokens are on the CPU; the caller moves them."""
        for prompt in set(prompts) - set(self._encoded):
            self._encoded[prompt] = self._encode(prompt)
        return torch.stack([self._encoded[prompt] for prompt in prompts])
