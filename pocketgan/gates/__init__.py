"""Checks of pairs: a score per pair, and what it may be."""

from pocketgan.gates.alignment_gate import AlignmentGate
from pocketgan.gates.exposure_gate import ExposureGate
from pocketgan.gates.gate import Gate, PairGate, SetGate
from pocketgan.gates.judgement import GATES_FILE_NAME, TEACHER, judged, measured, read_gates, refusal
from pocketgan.gates.near_duplicate_gate import NearDuplicateGate
from pocketgan.gates.safety_gate import SafetyGate
from pocketgan.gates.semantics_gate import SemanticsGate
from pocketgan.gates.structure_gate import StructureGate

__all__ = [
    "GATES_FILE_NAME",
    "TEACHER",
    "AlignmentGate",
    "ExposureGate",
    "Gate",
    "NearDuplicateGate",
    "PairGate",
    "SafetyGate",
    "SemanticsGate",
    "SetGate",
    "StructureGate",
    "judged",
    "measured",
    "read_gates",
    "refusal",
]
