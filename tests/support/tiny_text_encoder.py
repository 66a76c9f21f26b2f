"""A tiny CLIP text encoder with random weights."""

from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def make_text_encoder(folder: Path, seed: int = 0) -> Path:
    """Write a pipeline's folder with a text encoder of 32 features that reads 77 characters, and its tokenizer."""
    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    table = {word: place for place, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=table, merges=[], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder
