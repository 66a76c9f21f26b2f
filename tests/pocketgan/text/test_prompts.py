"""Prompt files."""

import pytest
from tiny import CONFIGS

from pocketgan.text import read_prompts


@pytest.fixture
def read(tmp_path):
    def write_and_read(text):
        file = tmp_path / "prompts.yaml"
        file.write_text(text)
        return read_prompts(file)

    return write_and_read


def test_names_and_prompts(read):
    assert read("oil: an oil painting\nink_2: ' black ink '\n") == {"oil": "an oil painting", "ink_2": "black ink"}


def test_a_list_names_itself(read):
    assert read("- an oil painting\n- Van Gogh's style!\n") == {
        "an_oil_painting": "an oil painting",
        "Van_Gogh_s_style": "Van Gogh's style!",
    }


@pytest.mark.parametrize("placeholder", ["{}", "{concepts}"])
def test_a_template_takes_fillings(read, placeholder):
    given = f"template: 'turn it into {placeholder}, please'\nconcepts: {{oil: an oil painting}}\n"
    assert read(given) == {"oil": "turn it into an oil painting, please"}
    given = f"template: 'turn it into {placeholder}'\nconcepts: [an oil painting]\n"
    assert read(given) == {"an_oil_painting": "turn it into an oil painting"}


def test_several_placeholders_are_combined(read):
    given = (
        "template: '{subject} by {artist}, {artist}'\nartist: [Van Gogh, Hokusai]\nsubject: {p: a portrait, q: {}}\n"
    )
    with pytest.raises(ValueError, match=r"q is \{\}, not a text"):
        read(given)
    assert read(given.replace("q: {}", "q: a quay")) == {
        "p_Van_Gogh": "a portrait by Van Gogh, Van Gogh",
        "p_Hokusai": "a portrait by Hokusai, Hokusai",
        "q_Van_Gogh": "a quay by Van Gogh, Van Gogh",
        "q_Hokusai": "a quay by Hokusai, Hokusai",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts; accepted are"),
        ("[]", "holds no prompts"),
        ("{}", "holds no prompts"),
        ("just text", "just text.*accepted are `NAME: prompt` lines"),
        ("oil: [", "cannot be read as YAML"),
        ("oil: a\noil: b\n", "duplicate key"),
        ("oil: one\nink: one\n", "the prompt 'one' stands there twice"),
        ("[an oil, an-oil, an_oil]", "two prompts come to the name an_oil"),
        ("oil:\n", "oil is None, not a text"),
        ("oil: ' '\n", "oil is ' ', not a text"),
        ("year: 1950\n", "year is 1950, not a text"),
        ("[1950]", "1950 is 1950, not a text"),
        ("oil paint: an oil painting\n", "'oil paint' cannot name a concept; .*such as oil_paint"),
        ("['!']", "'' cannot name a concept"),
        ("template: turn it into art\nconcepts: [a]\n", "has no placeholder"),
        ("template: 'turn it into {'\nconcepts: [a]\n", "is broken"),
        ("template: 3\nconcepts: [a]\n", "the template is 3"),
        ("template: '{} by {}'\nconcepts: [a]\n", "several placeholders; name each"),
        ("template: '{} by {artist}'\nartist: [a]\n", "several placeholders; name each"),
        ("template: '{subject} by {artist}'\nartist: [a]\n", "wants subject, artist, the file has artist"),
        ("template: '{}'\n", "wants concepts, the file has nothing else"),
        ("template: '{}'\nconcepts: []\n", "has an empty list"),
        ("template: '{}'\nconcepts: text\n", "holds 'text' where prompts should be"),
        ("template: '{}'\nconcepts: [a]\nink: more\n", "the file has concepts, ink"),
    ],
)
def test_what_cannot_be_used_is_refused(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; give a YAML file such as configs/prompts/art.yaml"):
        read_prompts(tmp_path / "none.yaml")


@pytest.mark.parametrize("file", sorted((CONFIGS / "prompts").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_prompts(file):
    assert file.read_text().startswith("# ")
    prompts = read_prompts(file)
    assert len(prompts) >= 6
