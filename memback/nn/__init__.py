"""Layers, under PyTorch's names."""

from __future__ import annotations

from memback.nn import layers
from memback.nn.attention import AttentionCore, MultiHeadAttention
from memback.nn.container import ModuleList, Sequential
from memback.nn.layers import *  # noqa: F403 - which names each of its layers already
from memback.nn.lstm import LSTM, LSTMLayer
from memback.nn.module import Module, Parameter
from memback.nn.policy import Policy

__all__ = [
    "LSTM",
    "AttentionCore",
    "LSTMLayer",
    "Module",
    "ModuleList",
    "MultiHeadAttention",
    "Parameter",
    "Policy",
    "Sequential",
]
__all__ += layers.__all__
