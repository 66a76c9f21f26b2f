"""What happens around a training, one file each."""

from callbacks.adapter_writer import AdapterWriter
from callbacks.clip_score_early_stopping import ClipScoreEarlyStopping
from callbacks.compression_table import CompressionTable
from callbacks.diffusion_adapter_writer import DiffusionAdapterWriter
from callbacks.image_budget import ImageBudget
from callbacks.loss_tracking_early_stopping import LossTrackingEarlyStopping
from callbacks.n_to_m_sparsity import NToMSparsity
from callbacks.pair_estimate import PairEstimate
from callbacks.pair_writer import PairWriter
from callbacks.personalization_writer import PersonalizationWriter
from callbacks.pipeline_writer import PipelineWriter
from callbacks.progressive_sparsity import ProgressiveSparsity
from callbacks.random_state import RandomState
from callbacks.rank_search import RankSearch
from callbacks.run_folder import MetricsCSV, SaveRunConfig

__all__ = [
    "AdapterWriter",
    "ClipScoreEarlyStopping",
    "CompressionTable",
    "DiffusionAdapterWriter",
    "ImageBudget",
    "LossTrackingEarlyStopping",
    "MetricsCSV",
    "NToMSparsity",
    "PairEstimate",
    "PairWriter",
    "PersonalizationWriter",
    "PipelineWriter",
    "ProgressiveSparsity",
    "RandomState",
    "RankSearch",
    "SaveRunConfig",
]
