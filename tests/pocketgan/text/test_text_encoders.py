"""The learned table, and the CLIP path on a tiny encoder built here."""

import json

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pocketgan.text import CLIPTextEncoder, ConceptTokens


def test_table_learns_and_grows():
    table = ConceptTokens(token_size=6, tokens_per_concept=2)
    table.add_concepts(["a", "b"])
    tokens = table(["b", "a", "b"], ["", "", ""])
    assert tokens.shape == (3, 2, 6)
    assert torch.equal(tokens[0], tokens[2])
    tokens[0].sum().backward()
    assert table.tokens["concept_b"].grad.any()
    assert not table.tokens["concept_a"].grad.any()
    before = table.tokens["concept_a"].clone()
    table.add_concepts(["a", "c"])
    assert torch.equal(table.tokens["concept_a"], before)
    torch.testing.assert_close(table.tokens["concept_c"], (table.tokens["concept_a"] + table.tokens["concept_b"]) / 2)


def test_names_of_attributes_are_names_like_others():
    table = ConceptTokens()
    table.add_concepts(["train", "type", "keys"])
    assert table(["train", "keys"], ["", ""]).shape == (2, 4, 64)


def test_an_adaptation_learns_its_own_tokens_alone():
    table = ConceptTokens()
    table.add_concepts(["old", "new"])
    table.learn_only(["new"])
    assert [table.tokens[f"concept_{name}"].requires_grad for name in ("old", "new")] == [False, True]


def test_table_names_an_unknown_concept():
    table = ConceptTokens()
    table.add_concepts(["mosaic"])
    with pytest.raises(ValueError, match="unknown concept sketch; this model knows mosaic"):
        table(["sketch"], [""])


@pytest.fixture
def clip_folder(tmp_path):
    """A pipeline folder with a randomly initialised text encoder and a character tokenizer."""
    folder = tmp_path / "clip"
    characters = [chr(code) for code in range(33, 127)]
    words = [
        *characters,
        *(f"{character}</w>" for character in characters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("flat", [False, True])
def test_clip_encodes_prompts_once(clip_folder, tmp_path, flat):
    if flat:
        for part in ("text_encoder", "tokenizer"):
            for file in (clip_folder / part).iterdir():
                file.rename(clip_folder / file.name)
            (clip_folder / part).rmdir()
    encoder = CLIPTextEncoder(str(clip_folder))
    assert encoder.token_size == 32
    tokens = encoder(["x", "y", "x"], ["a cat", "a dog", "a cat"])
    assert tokens.shape == (3, 77, 32)
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    assert not tokens.requires_grad
    assert list(encoder.state_dict()) == []
    assert list(encoder.parameters()) == []
    encoder._encoder = None  # encoded prompts are kept
    assert torch.equal(encoder(["x"], ["a cat"])[0], tokens[0])


def test_missing_clip_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="repo id that this machine can reach or a folder"):
        CLIPTextEncoder(str(tmp_path / "nothing"))
