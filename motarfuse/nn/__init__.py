"""Layers and losses: drop-in ``torch.nn.Module`` classes, each usable alone in another project."""

from motarfuse.nn.block import Attention, Block, DropPath, Mlp
from motarfuse.nn.bnneck import BNNeck
from motarfuse.nn.losses import IdLoss, TripletLoss

__all__ = ["Attention", "BNNeck", "Block", "DropPath", "IdLoss", "Mlp", "TripletLoss"]
