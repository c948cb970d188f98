"""Train state-space models that shrink while they train."""

from hsv_torch._errors import CutRefusedError
from hsv_torch.adapters import (
    Cut,
    LayerAdapter,
    Observation,
    adapter_of,
    compressible_layers,
    find_adapter,
    put_parameters,
    register_adapter,
    registered_layer_types,
)
from hsv_torch.allocation import Budget, Sizes
from hsv_torch.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_into, load_model, save_checkpoint
from hsv_torch.compress import compress_
from hsv_torch.criteria import ComplexHankel, Criterion, DiagonalCriterion, RealHankel, RealPoles, SymmetricHankel
from hsv_torch.discounted import Discounted
from hsv_torch.export import StepModule, export_onnx, export_onnx_step, plain_copy
from hsv_torch.gradients import (
    controllability_gramian,
    hankel_penalty,
    hankel_singular_values,
    hankel_sum,
    observability_gramian,
)
from hsv_torch.guard import Rollback
from hsv_torch.h2_optimal import H2Optimal
from hsv_torch.history import CompressionReport, Drift, Event, History, LayerRecord
from hsv_torch.in_training import InTrainingCompressor
from hsv_torch.layers.gated_linear_attention import GatedLinearAttention
from hsv_torch.layers.lru import LRU
from hsv_torch.layers.mamba import Mamba
from hsv_torch.layers.mamba2 import Mamba2
from hsv_torch.layers.s4d import S4D
from hsv_torch.layers.s5 import S5
from hsv_torch.linear_attention import LinearAttentionAdapter, LinearAttentionQuantities, LinearAttentionView
from hsv_torch.mode_choice import BalancedChoice, ModeChoice
from hsv_torch.models import SequenceModel, SequenceModelConfig
from hsv_torch.optimizer import UnknownOptimizerError, parameter_groups
from hsv_torch.schedule import LossFalls, RankingSettles, Schedule
from hsv_torch.selective import (
    Auto,
    ChannelBasis,
    LocalDistillation,
    SelectiveAdapter,
    SelectiveCriterion,
    SelectiveView,
    SharedBasis,
    StateChoice,
)

__all__ = [
    "LRU",
    "S4D",
    "S5",
    "Auto",
    "BalancedChoice",
    "Budget",
    "ChannelBasis",
    "Checkpoint",
    "CheckpointError",
    "ComplexHankel",
    "CompressionReport",
    "Criterion",
    "Cut",
    "CutRefusedError",
    "DiagonalCriterion",
    "Discounted",
    "Drift",
    "Event",
    "GatedLinearAttention",
    "H2Optimal",
    "History",
    "InTrainingCompressor",
    "LayerAdapter",
    "LayerRecord",
    "LinearAttentionAdapter",
    "LinearAttentionQuantities",
    "LinearAttentionView",
    "LocalDistillation",
    "LossFalls",
    "Mamba",
    "Mamba2",
    "ModeChoice",
    "Observation",
    "RankingSettles",
    "RealHankel",
    "RealPoles",
    "Rollback",
    "Schedule",
    "SelectiveAdapter",
    "SelectiveCriterion",
    "SelectiveView",
    "SequenceModel",
    "SequenceModelConfig",
    "SharedBasis",
    "Sizes",
    "StateChoice",
    "StepModule",
    "SymmetricHankel",
    "UnknownOptimizerError",
    "adapter_of",
    "compress_",
    "compressible_layers",
    "controllability_gramian",
    "export_onnx",
    "export_onnx_step",
    "find_adapter",
    "hankel_penalty",
    "hankel_singular_values",
    "hankel_sum",
    "load_checkpoint",
    "load_into",
    "load_model",
    "observability_gramian",
    "parameter_groups",
    "plain_copy",
    "put_parameters",
    "register_adapter",
    "registered_layer_types",
    "save_checkpoint",
]
