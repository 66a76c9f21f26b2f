"""The learned table, and the CLIP path on a tiny encoder built here."""

import pytest
import torch
from tiny_text_encoder import make_text_encoder
from transformers import CLIPTextModel, CLIPTokenizer

from pocketgan.adapters import merge
from pocketgan.networks import E2GANGenerator
from pocketgan.text import CLIPTextEncoder, ConceptTokens, EncodedPrompts, stacked


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
    return make_text_encoder(tmp_path / "clip")


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


def test_clip_reads_a_short_prompt_as_transformers_does(clip_folder):
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder / "tokenizer")
    model = CLIPTextModel.from_pretrained(clip_folder / "text_encoder").eval()
    encoder = CLIPTextEncoder(str(clip_folder))
    for prompt in ("a cat", "", "x" * 75):
        text = tokenizer(prompt, padding="max_length", return_tensors="pt")
        with torch.no_grad():
            expected = model(text.input_ids).last_hidden_state
        assert expected.shape == (1, 77, 32)
        assert torch.equal(encoder(["x"], [prompt]), expected)


def test_clip_reads_a_long_prompt_in_windows(clip_folder):
    encoder = CLIPTextEncoder(str(clip_folder))
    head, tail = "y" * 75, "tail"  # one token a letter, so that the 76th begins the second window
    tokens = encoder(["x"], [head + tail])[0]
    assert tokens.shape == (2 * 77, 32)
    assert torch.equal(tokens[77:], encoder(["x"], [tail])[0])
    other = encoder(["x"], [head + "else"])[0]
    assert torch.equal(other[:77], tokens[:77])
    assert not torch.equal(other[77:], tokens[77:])


def test_prompts_of_any_length_share_a_batch_and_change_nothing(clip_folder):
    encoder = CLIPTextEncoder(str(clip_folder))
    prompts = ["short", "y" * 80, "z" * 160]
    tokens = encoder(["a", "b", "c"], prompts)
    assert tokens.shape == (3, 6 * 77, 32)
    torch.manual_seed(0)
    generator = E2GANGenerator(width=8, token_size=32).eval()
    photos = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        together = generator(photos, tokens)
        for row, prompt in enumerate(prompts):
            alone = encoder(["a"], [prompt])
            assert alone.shape == (1, (row + 1) * 77, 32)
            torch.testing.assert_close(
                generator(photos[row : row + 1], alone), together[row : row + 1], atol=1e-5, rtol=0
            )
            deployed = merge(generator).fold_prompt(alone)
            torch.testing.assert_close(deployed(photos[row : row + 1]), together[row : row + 1], atol=1e-5, rtol=0)


def test_stacking_repeats_whole_sequences():
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])
    assert stacked([first, second])[:, :, 0].tolist() == [[1, 2, 1, 2, 1, 2], [3, 4, 5, 3, 4, 5]]
    assert torch.equal(stacked([second])[0], second)


def test_stored_prompts_need_no_encoder(clip_folder, tmp_path):
    encoder, opened = CLIPTextEncoder(str(clip_folder)), []

    def open_encoder():
        opened.append(1)
        return CLIPTextEncoder(str(clip_folder))

    stored = EncodedPrompts(32, encoder.identity, open_encoder)
    stored.remember({"a cat": encoder(["x"], ["a cat"])[0]})
    assert stored.identity == encoder.identity
    assert torch.equal(stored(["x"], ["a cat"]), encoder(["x"], ["a cat"]))
    assert not opened
    assert torch.equal(stored(["y", "x"], ["a dog", "a cat"]), encoder(["y", "x"], ["a dog", "a cat"]))
    stored(["y"], ["a bird"])
    assert len(opened) == 1
    assert not stored.state_dict()

    missing = EncodedPrompts(32, encoder.identity, lambda: CLIPTextEncoder(str(tmp_path / "gone")))
    with pytest.raises(FileNotFoundError, match=r"the prompt 'a dog' is new to the base.*correct it there"):
        missing(["x"], ["a dog"])
    other = make_text_encoder(tmp_path / "other", seed=1)
    changed = EncodedPrompts(32, encoder.identity, lambda: CLIPTextEncoder(str(other)))
    with pytest.raises(ValueError, match="which was trained with CLIPTextEncoder of 32 features, weights"):
        changed(["x"], ["a dog"])
