"""Layers and losses: drop-in ``torch.nn.Module`` classes, each usable alone in another project."""

from motarfuse.nn.block import Attention, Block, DropPath, LayerScale, Mlp
from motarfuse.nn.bnneck import BNNeck
from motarfuse.nn.canonical_posture import AlignedPosture, CanonicalPosture
from motarfuse.nn.distributed import gather_features
from motarfuse.nn.fused_steps import PendingSum, add_norm
from motarfuse.nn.fusion_encoder import FusedTokens, FusionEncoder
from motarfuse.nn.gated_fusion import GatedFusion
from motarfuse.nn.local_appearance import LocalAppearance
from motarfuse.nn.losses import IdLoss, TripletLoss
from motarfuse.nn.motion_attention import MotionAttention, MotionCrossAttention, TokenMotion, motion_channels
from motarfuse.nn.motion_consistency import CopyPair, FramePair, MotionConsistencyLoss
from motarfuse.nn.motion_scale import MotionScale
from motarfuse.nn.part_decoder import PartDecoder, PartHeads, PartState
from motarfuse.nn.part_loss import PartLoss, part_distances
from motarfuse.nn.part_pool import PartPool
from motarfuse.nn.visual_adapter import VisualAdapter

__all__ = [
    "AlignedPosture",
    "Attention",
    "BNNeck",
    "Block",
    "CanonicalPosture",
    "CopyPair",
    "DropPath",
    "FramePair",
    "FusedTokens",
    "FusionEncoder",
    "GatedFusion",
    "IdLoss",
    "LayerScale",
    "LocalAppearance",
    "Mlp",
    "MotionAttention",
    "MotionConsistencyLoss",
    "MotionCrossAttention",
    "MotionScale",
    "PartDecoder",
    "PartHeads",
    "PartLoss",
    "PartPool",
    "PartState",
    "PendingSum",
    "TokenMotion",
    "TripletLoss",
    "VisualAdapter",
    "add_norm",
    "gather_features",
    "motion_channels",
    "part_distances",
]
