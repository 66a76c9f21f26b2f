"""Lists of concepts and their prompts in a YAML file."""

import itertools
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from pocketgan.pair_set import as_name

TEMPLATE = "template"
_FORMS = (
    "accepted are `NAME: prompt` lines; a list of prompts; or a template with what goes into it, such as "
    "`template: turn it into {subject}` with `subject: [a watercolour, a pencil sketch]`"
)


def read_prompts(file: Path) -> dict[str, str]:
    """Read concepts and their prompts from a YAML file of one of three forms.

    Names and prompts (``watercolour: turn it into a watercolour``); a list of prompts, named after themselves; or a
    template and, for each of its placeholders, a list of fillings, or a mapping of names to fillings. Of several
    placeholders every combination is made, the last one's fillings first; a concept is named by its fillings' names
    with _ between::

        template: "{subject} in the style of {artist}"
        subject: {portrait: a portrait, landscape: a landscape}
        artist: [Van Gogh, Hokusai]

    makes ``portrait_Van_Gogh``, ``portrait_Hokusai``, ``landscape_Van_Gogh`` and ``landscape_Hokusai``. Where there is
    one placeholder, it may be ``{}``, and its fillings stand under ``concepts``.

    Args:
        file: The YAML file.

    Returns:
        Concepts in the file's order: name to prompt.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another form, a placeholder and its fillings do not go together, or a name or a prompt is
            empty, cannot be used or comes twice.
    """
    if not file.is_file():
        raise FileNotFoundError(f"prompt file {file} does not exist; give a YAML file such as configs/prompts/art.yaml")
    try:
        # omegaconf's reader, because it refuses a key that comes twice
        content = OmegaConf.to_container(OmegaConf.load(file))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        lines = str(error).splitlines()
        raise ValueError(f"{file} cannot be read as YAML ({' '.join(line.strip() for line in lines)})") from error
    if not content:
        raise ValueError(f"{file} holds no prompts; {_FORMS}")
    if isinstance(content, dict) and TEMPLATE in content:
        pairs = _filled(file, {str(key): value for key, value in content.items()})
    else:
        pairs = _named(file, content)
    prompts: dict[str, str] = {}
    for name, prompt in pairs:
        if name in prompts:
            raise ValueError(f"{file}: two prompts come to the name {name}; give them names of their own")
        if prompt in prompts.values():
            raise ValueError(f"{file}: the prompt {prompt!r} stands there twice; remove one")
        prompts[name] = prompt
    return prompts


def as_prompts(given: Mapping[str, str] | Path | None) -> dict[str, str]:
    """Concepts and their prompts as a mapping, whether given as one, as a file of them (`read_prompts`), or not."""
    return read_prompts(given) if isinstance(given, Path) else dict(given or {})


def check_known(prompts: Mapping[str, str], concepts: Iterable[str]) -> None:
    """Refuse prompts of concepts that are not there.

    Raises:
        ValueError: With the names of both.
    """
    unknown = sorted(set(prompts) - set(concepts))
    if unknown:
        raise ValueError(f"prompts name {', '.join(unknown)}; the concepts are {', '.join(sorted(concepts))}")


def _filled(file: Path, content: dict[str, Any]) -> list[tuple[str, str]]:
    """Put fillings into a template."""
    template = content.pop(TEMPLATE)
    if not isinstance(template, str):
        raise ValueError(f"{file}: the template is {template!r}; give a text such as 'turn it into {{}}'")
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"{file}: the template {template!r} is broken ({error}); placeholders are {{NAME}}") from error
    if not fields:
        raise ValueError(f"{file}: the template {template!r} has no placeholder; write {{}} where the fillings go")
    if fields == [""]:
        fields, template = ["concepts"], template.replace("{}", "{concepts}")
    fields = list(dict.fromkeys(fields))
    if "" in fields or not all(field.isidentifier() for field in fields):
        raise ValueError(f"{file}: the template {template!r} has several placeholders; name each, such as {{subject}}")
    if set(fields) != set(content):
        raise ValueError(
            f"{file}: the template wants {', '.join(fields)}, the file has {', '.join(content) or 'nothing else'}; "
            "give each placeholder its fillings, and nothing more"
        )
    choices = itertools.product(*(_named(file, content[field]) for field in fields))
    return [
        (
            "_".join(name for name, _ in chosen),
            template.format(**{field: filling for field, (_, filling) in zip(fields, chosen, strict=True)}),
        )
        for chosen in choices
    ]


def _named(file: Path, content: object) -> list[tuple[str, str]]:
    """Names and texts of a mapping, or of a list, whose texts give the names."""
    if isinstance(content, dict):
        pairs = [(str(name), text) for name, text in content.items()]
    elif isinstance(content, list):
        pairs = [(as_name(str(text)).strip("_"), text) for text in content]
    else:
        raise ValueError(f"{file} holds {content!r} where prompts should be; {_FORMS}")
    if not pairs:
        raise ValueError(f"{file} has an empty list; {_FORMS}")
    for name, text in pairs:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{file}: {name or 'a prompt'} is {text!r}, not a text; {_FORMS}")
        if not name or name != as_name(name):
            raise ValueError(
                f"{file}: {name!r} cannot name a concept; use letters A-Z, digits, _ and - only, such as "
                f"{as_name(name).strip('_') or 'watercolour'}"
            )
    return [(name, text.strip()) for name, text in pairs]
