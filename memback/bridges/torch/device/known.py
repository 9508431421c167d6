"""Ops of which it is known that their kernels on CUDA take no memory besides what they give."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

__all__ = ["takes_nothing_else"]

_BY_ELEMENT = (
    "abs_ complex elu_backward eq_ floor_divide floor_divide_ ge_ gelu_ gelu_backward glu glu_backward gt_"
    " hardshrink_backward hardsigmoid_backward hardswish hardswish_ hardswish_backward hardtanh_backward le_"
    " leaky_relu_backward log_sigmoid_backward log_sigmoid_forward lt_ mish_ ne_ polar rrelu_with_noise"
    " rrelu_with_noise_ rsub softplus_backward softshrink_backward threshold_ threshold_backward _prelu_kernel"
    " _prelu_kernel_backward _amp_foreach_non_finite_check_and_unscale_ _amp_update_scale_"
)
"""Which PyTorch does not mark as such."""
_MAKE = (
    "arange empty empty_like empty_strided eye full full_like linspace logspace new_empty new_empty_strided new_full"
    " new_ones new_zeros ones ones_like rand rand_like randint randint_like randn randn_like scalar_tensor tril triu"
    " tril_indices triu_indices zeros zeros_like _efficientzerotensor"
)
_FILL_AND_COPY = (
    "bernoulli bernoulli_ cat clone constant_pad_nd copy copy_ exponential_ fill fill_ flip is_pinned lift lift_fresh"
    " normal_ pixel_shuffle pixel_unshuffle random_ reflection_pad1d reflection_pad1d_backward reflection_pad2d"
    " reflection_pad2d_backward repeat replication_pad1d replication_pad1d_backward replication_pad2d"
    " replication_pad2d_backward resize_ set_ stack uniform_ zero_ _assert_async _assert_tensor_metadata"
    " _local_scalar_dense _to_copy"
)
_OF_VIEWS = (
    "as_strided_scatter diagonal_backward select_backward select_scatter slice_backward slice_scatter unfold_backward"
    " unsafe_split unsafe_split_with_sizes _reshape_alias _unsafe_view"
)
_CHOOSE = (
    "embedding gather index index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_select masked_fill"
    " masked_fill_ put_ scatter scatter_ scatter_add scatter_add_ scatter_reduce take where _unsafe_index"
)
_NORMALISE = (
    "_log_softmax _log_softmax_backward_data _softmax _fused_rms_norm _fused_rms_norm_backward native_dropout_backward"
    " _weight_norm_interface _weight_norm_interface_backward"
)
_LOSE = (
    "nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward mse_loss_backward"
    " smooth_l1_loss_backward huber_loss_backward binary_cross_entropy_backward"
)
_POOL = (
    "avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward max_pool2d_with_indices"
    " max_pool2d_with_indices_backward _adaptive_avg_pool2d _adaptive_avg_pool2d_backward adaptive_max_pool2d"
    " adaptive_max_pool2d_backward upsample_nearest1d upsample_nearest1d_backward upsample_nearest2d"
    " upsample_nearest2d_backward upsample_bilinear2d upsample_bilinear2d_backward upsample_bicubic2d"
    " upsample_bicubic2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest3d"
    " upsample_nearest3d_backward upsample_trilinear3d upsample_trilinear3d_backward _upsample_nearest_exact1d"
    " _upsample_nearest_exact1d_backward _upsample_nearest_exact2d _upsample_nearest_exact2d_backward grid_sampler_2d"
    " im2col col2im"
)
_NAMES = frozenset(
    " ".join((_BY_ELEMENT, _MAKE, _FILL_AND_COPY, _OF_VIEWS, _CHOOSE, _NORMALISE, _LOSE, _POOL)).split(),
)
_BEGINNINGS = ("_foreach_", "_fused_adam", "_fused_sgd", "_scaled_dot_product_", "_thnn_fused_", "sym_")


@cache
def takes_nothing_else(func: Any) -> bool:
    """Whether it is known of an op: of those that go through their arguments element by element, and of these."""
    if func.is_view or torch.Tag.pointwise in func.tags or torch.Tag.inplace_view in func.tags:
        return True
    name = func._overloadpacket.__name__
    return func.namespace in ("aten", "prims") and (name in _NAMES or name.startswith(_BEGINNINGS))
