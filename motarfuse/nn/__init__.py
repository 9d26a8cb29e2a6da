"""Layers and losses: drop-in ``torch.nn.Module`` classes, each usable alone in another project."""

from motarfuse.nn.block import Attention, Block, DropPath, Mlp
from motarfuse.nn.bnneck import BNNeck
from motarfuse.nn.canonical_posture import AlignedPosture, CanonicalPosture
from motarfuse.nn.fusion_encoder import FusedTokens, FusionEncoder
from motarfuse.nn.gated_fusion import GatedFusion
from motarfuse.nn.losses import IdLoss, TripletLoss
from motarfuse.nn.motion_attention import MotionAttention, MotionCrossAttention, TokenMotion, motion_channels
from motarfuse.nn.part_decoder import MotionScale, PartDecoder, PartHeads, PartState
from motarfuse.nn.part_pool import PartPool
from motarfuse.nn.visual_adapter import VisualAdapter

__all__ = [
    "AlignedPosture",
    "Attention",
    "BNNeck",
    "Block",
    "CanonicalPosture",
    "DropPath",
    "FusedTokens",
    "FusionEncoder",
    "GatedFusion",
    "IdLoss",
    "Mlp",
    "MotionAttention",
    "MotionCrossAttention",
    "MotionScale",
    "PartDecoder",
    "PartHeads",
    "PartPool",
    "PartState",
    "TokenMotion",
    "TripletLoss",
    "VisualAdapter",
    "motion_channels",
]
