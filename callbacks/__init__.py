"""What happens around a training, one file each."""

from callbacks.adapter_writer import AdapterWriter
from callbacks.image_budget import ImageBudget
from callbacks.pair_writer import PairWriter
from callbacks.random_state import RandomState
from callbacks.rank_search import RankSearch
from callbacks.run_folder import MetricsCSV, SaveRunConfig

__all__ = [
    "AdapterWriter",
    "ImageBudget",
    "MetricsCSV",
    "PairWriter",
    "RandomState",
    "RankSearch",
    "SaveRunConfig",
]
