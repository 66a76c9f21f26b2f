"""A new word for a tokenizer, with an embedding that trains."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import TrainableTokensConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

TOKEN_FILE = "learned_embeds.safetensors"  # the name that diffusers looks for


class PlaceholderToken:
    """One token that stands for the concept: PEFT trains its row of the table, the rest of the table is not touched.

    The published scripts give the optimizer the whole table and copy the original back after each step.

    Args:
        token: The new word, for example ``<ring>``.
        initializer: A word whose embedding the new one begins with; it must be one token.
    """

    def __init__(self, token: str, initializer: str) -> None:
        self.token, self.initializer = token, initializer

    def add(self, pipeline: StableDiffusionPipeline) -> None:
        """Give tokenizer and text encoder the word.

        Raises:
            ValueError: The tokenizer has it already, or the initializer is not one token.
        """
        tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
        known = {self.token, f"{self.token.lower()}</w>"} & set(tokenizer.get_vocab())
        if known:
            raise ValueError(
                f"the tokenizer has the token {self.token!r} already; choose a word that it does not know, such as "
                f"<my-{self.token.strip('<>')}>"
            )
        initial = tokenizer(self.initializer, add_special_tokens=False).input_ids
        if len(initial) != 1:
            raise ValueError(
                f"the initializer {self.initializer!r} is {len(initial)} tokens; give a plain word that is one, such "
                "as toy, cat or painting"
            )
        tokenizer.add_tokens(self.token)
        number = tokenizer.convert_tokens_to_ids(self.token)
        # its mean of all rows is not wanted: the row is set right here
        table = encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False).requires_grad_(False)
        with torch.no_grad():
            table.weight[number] = table.weight[initial[0]]
        config = TrainableTokensConfig(token_indices=[number], target_modules=["token_embedding"])
        inject_adapter_in_model(config, encoder)
        self.embedding: nn.Parameter = encoder.get_input_embeddings().trainable_tokens_delta["default"]

    def save(self, folder: Path) -> None:
        """Write the embedding (1, D) under the word's name."""
        save_file({self.token: self.embedding.detach().cpu().contiguous()}, folder / TOKEN_FILE)
