"""Gates over a pair set: what is measured, what is kept, and the file that says by which limits."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from pocketgan.gates.gate import Gate, PairGate, Scores, SetGate, rounded
from pocketgan.images import to_tensor

if TYPE_CHECKING:
    from pocketgan.pair_set import Pair

GATES_FILE_NAME = "gates.json"
# whose marks are not a gate's: the teacher gave no picture
TEACHER = "teacher"


def pair_gates(gates: Mapping[str, Gate]) -> dict[str, PairGate]:
    """Those that need no other pair."""
    return {name: gate for name, gate in gates.items() if isinstance(gate, PairGate)}


def measured(
    gates: Mapping[str, Gate], photo: Tensor, edit: Tensor, concept: str, prompt: str, known: Mapping[str, float]
) -> Scores:
    """Measure one pair by the gates that need no other pair.

    Args:
        gates: By name.
        photo: (3, H, W) in [-1, 1], of 8 bits, as stored.
        edit: Likewise.
        concept: The edit's name.
        prompt: What the teacher was asked for.
        known: Scores that stay as they are.

    Returns:
        All scores, rounded and sorted by name.
    """
    scores = dict(known)
    for gate in pair_gates(gates).values():
        if not set(gate.score_names) <= set(known):
            scores.update(gate.scores(photo, edit, concept, prompt))
    return rounded(scores)


def refusal(gates: Mapping[str, Gate], scores: Mapping[str, float]) -> str | None:
    """Return the mark of the first gate that refuses a pair, ``NAME: reason``; None if all let it pass.

    Raises:
        ValueError: A score that a gate needs is missing.
    """
    for name, gate in gates.items():
        missing = [score for score in gate.score_names if score not in scores]
        if missing:
            raise ValueError(
                f"gate {name} needs {', '.join(missing)}, which this pair lacks; measure the set by "
                "`pocketgan pairs inspect ROOT --apply`"
            )
        reason = gate.refusal(scores)
        if reason is not None:
            return f"{name}: {reason}"
    return None


def judged(
    root: Path, pairs: Iterable["Pair"], gates: Mapping[str, Gate], earlier: Collection[str] = ()
) -> list["Pair"]:
    """Measure what is not measured yet and mark every pair anew.

    A mark that no gate made, such as the teacher's, stays. Pairs whose files are gone stay as they are.

    Args:
        root: The pair set.
        pairs: Its pairs, kept and dropped, sorted by concept and id.
        gates: By name.
        earlier: Names of further gates, whose marks are not to stay.

    Returns:
        As many pairs, in their order.
    """
    found = [_with_pair_scores(root, pair, gates) for pair in pairs]
    there = [place for place, pair in enumerate(found) if pair.has_files(root)]
    for gate in gates.values():
        if isinstance(gate, SetGate):
            _add_set_scores(root, found, there, gate)
    for place in there:
        pair = found[place]
        foreign = pair.dropped is not None and mark_maker(pair.dropped) not in {*gates, *earlier}
        if not foreign:
            found[place] = replace(pair, dropped=refusal(gates, pair.scores or {}))
    return found


def mark_maker(mark: str) -> str:
    """The name before a mark's colon: of a gate, or of whoever else made it."""
    return mark.split(":", 1)[0]


def is_measured(pair: "Pair", gates: Mapping[str, Gate]) -> bool:
    """Whether a pair has all scores that gates need."""
    return all(set(gate.score_names) <= set(pair.scores or {}) for gate in gates.values())


def without_scores(pair: "Pair", names: Collection[str]) -> "Pair":
    """A pair that has forgotten some of its scores."""
    scores = {name: value for name, value in (pair.scores or {}).items() if name not in names}
    return replace(pair, scores=scores or None)


def outdated_scores(gates: Mapping[str, Gate], earlier: Mapping[str, Gate]) -> set[str]:
    """Names of scores that gates of before measured otherwise than those of now."""
    before = {type(gate): gate.measurement for gate in earlier.values()}
    return {
        name
        for gate in gates.values()
        if before.get(type(gate), gate.measurement) != gate.measurement
        for name in gate.score_names
    }


def _with_pair_scores(root: Path, pair: "Pair", gates: Mapping[str, Gate]) -> "Pair":
    if is_measured(pair, pair_gates(gates)) or not pair.has_files(root):
        return pair
    photo, edit = (_stored(root / name) for name in (pair.photo_file_name, pair.edit_file_name))
    return replace(pair, scores=measured(gates, photo, edit, pair.concept, pair.prompt, pair.scores or {}))


def _add_set_scores(root: Path, pairs: list["Pair"], places: Sequence[int], gate: SetGate) -> None:
    measured_pairs = [pairs[place] for place in places]
    # whatever is added to a set comes without these scores
    if all(set(gate.score_names) <= set(pair.scores or {}) for pair in measured_pairs):
        return
    for place, scores in zip(places, gate.scores_of_set(root, measured_pairs), strict=True):
        pairs[place] = replace(pairs[place], scores=rounded({**(pairs[place].scores or {}), **scores}))


def _stored(file: Path) -> Tensor:
    with Image.open(file) as picture:
        return to_tensor(picture.convert("RGB"))


def check_names(gates: Mapping[str, Gate]) -> None:
    """Refuse names and gates that could not be told from others.

    Raises:
        ValueError: A name has a colon, or is the teacher's; or two gates write one score.
    """
    for name in gates:
        if name == TEACHER or ":" in name or not name.strip():
            raise ValueError(f"no gate can be named {name!r}; take another name, such as alignment")
    writers: dict[str, str] = {}
    for name, gate in gates.items():
        for score in gate.score_names:
            if writers.setdefault(score, name) != name:
                raise ValueError(f"gates {writers[score]} and {name} both write the score {score}; leave one out")


def gates_document(gates: Mapping[str, Gate]) -> bytes:
    """Gates as the content of a file that `read_gates` reads."""
    described = {
        name: {"class_path": f"{type(gate).__module__}.{type(gate).__qualname__}", "init_args": gate.arguments}
        for name, gate in gates.items()
    }
    return json.dumps(described, indent=2, ensure_ascii=False).encode() + b"\n"


def read_gates(file: Path, earlier: Mapping[str, Gate] | None = None) -> dict[str, Gate]:
    """Build the gates that a file names: ROOT/gates.json, or a YAML like the block ``gates`` of a synthesis.

    Args:
        file: YAML or JSON.
        earlier: Gates that stay: those that the file names are replaced in their place, or go where it says null.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, or names a class or an argument that does not exist.
    """
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser

    # short class names are found among imported classes
    import pocketgan.gates  # noqa: F401

    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist; give a YAML of gates, such as a copy of a set's {GATES_FILE_NAME}"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--gates", type=dict[str, Gate | None])
    try:
        document: Any = yaml.safe_load(file.read_text())
        built: dict[str, Gate | None] = parser.instantiate(parser.parse_object({"gates": document or {}})).gates
    except (ArgumentError, yaml.YAMLError) as error:
        raise ValueError(
            f"{file} does not name gates ({error}); it must map each name to a class_path with init_args, for example\n"
            "exposure: {class_path: ExposureGate, init_args: {least_spread_levels: 6}}"
        ) from error
    gates = {name: gate for name, gate in {**(earlier or {}), **built}.items() if gate is not None}
    check_names(gates)
    return gates
