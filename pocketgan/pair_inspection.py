"""What gates keep of a pair set and what they drop, as tables and as pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pocketgan.gates import Gate, judged, read_gates
from pocketgan.gates.judgement import is_measured, mark_maker, outdated_scores, without_scores
from pocketgan.pair_set import Pair, is_unfinished, locked, read_pairs, replace_gates, replace_pairs, set_gates

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)

_SIDE_PX, _GAP_PX, _LINE_PX, _HEADING_PX = 144, 10, 15, 30
_TEXT_LINES, _COLUMNS = 3, 3
_DROPPED_PER_GATE, _KEPT = 6, 6


@dataclass(frozen=True)
class Inspection:
    """A pair set under gates.

    Attributes:
        root: The set.
        gates: By name.
        before: Its pairs as pairs.jsonl has them, kept and dropped, sorted by concept and id.
        pairs: The same as the gates judge them.
        applied: Whether the set's lines are now these.
    """

    root: Path
    gates: Mapping[str, Gate]
    before: Sequence[Pair]
    pairs: Sequence[Pair]
    applied: bool

    @property
    def newly_dropped(self) -> list[Pair]:
        """Pairs that are kept so far."""
        return [new for old, new in zip(self.before, self.pairs, strict=True) if new.dropped and not old.dropped]

    @property
    def taken_back(self) -> list[Pair]:
        """Pairs that are dropped so far."""
        return [new for old, new in zip(self.before, self.pairs, strict=True) if old.dropped and not new.dropped]

    @property
    def is_unchanged(self) -> bool:
        """Whether the set's lines were as the gates would have them."""
        return list(self.before) == list(self.pairs)

    def margin(self, pair: Pair) -> tuple[float, str]:
        """How far a pair is from its nearest limit, and the gate that has it; 0 and no name without gates."""
        margins = [
            (gate.margin(pair.scores or {}), name)
            for name, gate in self.gates.items()
            if set(gate.score_names) <= set(pair.scores or {})
        ]
        return min(margins, default=(0.0, ""))


def inspect_pairs(root: Path, gates_file: Path | None = None, apply: bool = False) -> Inspection:
    """Judge a pair set by its gates.

    What is not measured yet is measured from the files; nothing is generated.

    Args:
        root: The pair set.
        gates_file: YAML of gates by name: one that the set has is replaced, another is added, null takes one away.
        apply: Write scores, marks and gates to the set.

    Raises:
        FileNotFoundError: ``root`` is no pair set, or a gate's weights are missing.
        ValueError: The set or the file is broken, or there is nothing to apply.
        RuntimeError: ``apply`` while another process is writing the set.
    """
    read_pairs(root)
    with locked(root) if apply else nullcontext():
        before = read_pairs(root, include_dropped=True)
        earlier = set_gates(root)
        gates = read_gates(gates_file, earlier) if gates_file else earlier
        if apply and not gates and not earlier:
            raise ValueError(f"{root} has no gates to apply; name some in a YAML and give it by --gates")
        outdated = outdated_scores(gates, earlier)
        found = [without_scores(pair, outdated) for pair in before]
        missing = sum(not is_measured(pair, gates) for pair in found)
        if missing:
            _prepare(found, gates)
        pairs = judged(root, track(found, f"measuring {missing} pairs", disable=not missing), gates, earlier)
        if apply:
            replace_gates(root, before, gates)
            replace_pairs(root, pairs)
    return Inspection(root, gates, before, pairs, apply)


def _prepare(pairs: Sequence[Pair], gates: Mapping[str, Gate]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, gate in gates.items():
        if not all(is_measured(pair, {name: gate}) for pair in pairs):
            gate.prepare()
            gate.to(device)


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print what is kept and dropped per concept and gate, the scores, and what differs from the set's lines."""
    pairs = inspection.pairs
    makers = _makers(pairs, inspection.gates)
    _say(console, f"{inspection.root}: pairs kept, and dropped by whom")
    table = Table("concept", box=SIMPLE)
    for heading in ("pairs", "kept", *makers):
        table.add_column(heading, justify="right")
    concepts = sorted({pair.concept for pair in pairs})
    for concept in concepts:
        table.add_row(concept, *_counts([pair for pair in pairs if pair.concept == concept], makers))
    table.add_section()
    table.add_row("all", *_counts(pairs, makers))
    console.print(table)
    for maker in makers:
        pair = next(pair for pair in pairs if pair.dropped and mark_maker(pair.dropped) == maker)
        _say(console, f"for example {pair.concept}/{pair.id}, dropped by {pair.dropped}")
    if is_unfinished(inspection.root):
        _say(console, f"{inspection.root} is at work or was broken off; `pocketgan predict` again makes the rest")
    names = sorted({name for pair in pairs for name in pair.scores or {}})
    if names:
        console.print(_score_table(pairs, names))
    else:
        console.print(f"no pair has scores; add gates by --gates FILE, which {inspection.root} then keeps with --apply")
    _print_changes(inspection, console)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _makers(pairs: Sequence[Pair], gates: Mapping[str, Gate]) -> list[str]:
    """Who marked pairs: the gates in their order, then others."""
    found = {mark_maker(pair.dropped) for pair in pairs if pair.dropped}
    return [*(name for name in gates if name in found), *sorted(found - set(gates))]


def _counts(pairs: Sequence[Pair], makers: Sequence[str]) -> list[str]:
    marks = Counter(mark_maker(pair.dropped) for pair in pairs if pair.dropped)
    return [str(len(pairs)), str(len(pairs) - marks.total()), *(str(marks[maker] or "") for maker in makers)]


def _score_table(pairs: Sequence[Pair], names: Sequence[str]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("score", no_wrap=True)
    for heading in ("least", "5 %", "median", "95 %", "most"):
        table.add_column(heading, justify="right")
    for name in names:
        values = [pair.scores[name] for pair in pairs if pair.scores and name in pair.scores]
        table.add_row(name, *(f"{value:.3g}" for value in np.quantile(values, QUANTILES)))
    return table


def _print_changes(inspection: Inspection, console: Console) -> None:
    if inspection.is_unchanged or not inspection.gates:
        return
    dropped, back = len(inspection.newly_dropped), len(inspection.taken_back)
    applied = "written to the set" if inspection.applied else "the set stays as it is without --apply"
    console.print(f"{dropped} more pairs are dropped than before and {back} fewer; {applied}", highlight=False)


def contact_sheet(inspection: Inspection) -> Image.Image:
    """Lay out photo and edit of the pairs that each gate dropped, and of the worst and the best that are kept.

    Returns:
        One column of sections, each of rows of pairs with their id, concept, reason or scores under them.
    """
    sections = _sections(inspection)
    cell_width, cell_height = 2 * _SIDE_PX + _GAP_PX, _SIDE_PX + _TEXT_LINES * _LINE_PX + _GAP_PX
    rows = [-(-len(pairs) // _COLUMNS) for _, pairs in sections]
    height = sum(_HEADING_PX + count * cell_height for count in rows) + 2 * _GAP_PX
    sheet = Image.new("RGB", (_COLUMNS * (cell_width + _GAP_PX) + _GAP_PX, height), "white")
    draw = ImageDraw.Draw(sheet)
    heading, text = ImageFont.load_default(16), ImageFont.load_default(11)
    top = _GAP_PX
    for (title, pairs), count in zip(sections, rows, strict=True):
        draw.text((_GAP_PX, top), title, fill="black", font=heading)
        top += _HEADING_PX
        for place, pair in enumerate(pairs):
            left = _GAP_PX + place % _COLUMNS * (cell_width + _GAP_PX)
            up = top + place // _COLUMNS * cell_height
            for column, name in enumerate((pair.photo_file_name, pair.edit_file_name)):
                with Image.open(inspection.root / name) as picture:
                    shown = picture.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
                sheet.paste(shown, (left + column * (_SIDE_PX + 2), up))
            lines = [_cut(f"{pair.concept}  {pair.id}", text, cell_width)]
            lines += _wrapped(_comment(inspection, pair), text, cell_width)[: _TEXT_LINES - 1]
            for line, words in enumerate(lines):
                colour = "black" if line == 0 else "firebrick" if pair.dropped else "dimgrey"
                draw.text((left, up + _SIDE_PX + 2 + line * _LINE_PX), words, fill=colour, font=text)
        top += count * cell_height
    return sheet


def _sections(inspection: Inspection) -> list[tuple[str, list[Pair]]]:
    def margin(pair: Pair) -> tuple[float, str, str]:
        return (inspection.margin(pair)[0], pair.concept, pair.id)

    there = [pair for pair in inspection.pairs if pair.has_files(inspection.root)]
    kept = sorted((pair for pair in there if not pair.dropped), key=margin)
    sections = []
    for maker in _makers(there, inspection.gates):
        dropped = sorted((pair for pair in there if pair.dropped and mark_maker(pair.dropped) == maker), key=margin)
        shown = _spread_out(dropped, _DROPPED_PER_GATE)
        sections.append((f"dropped by {maker}: {len(shown)} of {len(dropped)}, worst first", shown))
    worst = kept[: min(_KEPT, (len(kept) + 1) // 2)]
    of_photo = {pair.id: pair for pair in kept[len(worst) :]}  # each photo's best
    best = sorted(of_photo.values(), key=margin, reverse=True)[:_KEPT]
    sections.append((f"kept, nearest to a limit: {len(worst)} of {len(kept)}", worst))
    sections.append((f"kept, farthest from all limits: {len(best)} of {len(kept)}", best))
    return [(title, pairs) for title, pairs in sections if pairs]


def _spread_out(pairs: list[Pair], count: int) -> list[Pair]:
    """Take the first, the last and some between."""
    places = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))
    return [pairs[place] for place in places]


def _comment(inspection: Inspection, pair: Pair) -> str:
    if pair.dropped:
        return pair.dropped
    _, name = inspection.margin(pair)
    if not name:
        return ""
    scores, first = pair.scores or {}, inspection.gates[name].score_names[:3]
    return ", ".join(f"{score.replace('_', ' ')} {scores[score]:.3g}" for score in first)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [_cut(each, font, width) for each in (*lines, line)]


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(text) > width:
        text = f"{text[:-2]}…"
    return text
