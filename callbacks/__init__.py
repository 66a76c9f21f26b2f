"""What happens around a training, one file each."""

from callbacks.adapter_writer import AdapterWriter
from callbacks.clip_score_early_stopping import ClipScoreEarlyStopping
from callbacks.compression_table import CompressionTable
from callbacks.diffusion_adapter_writer import DiffusionAdapterWriter
from callbacks.fit_estimate import FitEstimate
from callbacks.image_budget import ImageBudget
from callbacks.image_progress_bar import ImageProgressBar
from callbacks.image_quality import ImageQuality
from callbacks.loss_tracking_early_stopping import LossTrackingEarlyStopping
from callbacks.metrics_csv import MetricsCSV
from callbacks.n_to_m_sparsity import NToMSparsity
from callbacks.pair_estimate import PairEstimate
from callbacks.pair_writer import PairWriter
from callbacks.personalization_writer import PersonalizationWriter
from callbacks.pipeline_writer import PipelineWriter
from callbacks.progressive_sparsity import ProgressiveSparsity
from callbacks.random_state import RandomState
from callbacks.rank_search import RankSearch
from callbacks.requeue import Requeue
from callbacks.run_artifacts import RunArtifacts
from callbacks.run_end import RunEnd
from callbacks.run_loggers import RunLoggers
from callbacks.run_mirror import RunMirror
from callbacks.sample_grid import SampleGrid
from callbacks.save_run_config import SaveRunConfig
from callbacks.throughput_monitor import ThroughputMonitor
from callbacks.training_alarm import TrainingAlarm
from callbacks.unstopping_logger import UnstoppingLogger
from callbacks.wandb_run_logger import WandbRunLogger

__all__ = [
    "AdapterWriter",
    "ClipScoreEarlyStopping",
    "CompressionTable",
    "DiffusionAdapterWriter",
    "FitEstimate",
    "ImageBudget",
    "ImageProgressBar",
    "ImageQuality",
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
    "Requeue",
    "RunArtifacts",
    "RunEnd",
    "RunLoggers",
    "RunMirror",
    "SampleGrid",
    "SaveRunConfig",
    "ThroughputMonitor",
    "TrainingAlarm",
    "UnstoppingLogger",
    "WandbRunLogger",
]
