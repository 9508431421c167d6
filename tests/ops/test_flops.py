"""FLOPs against closed forms, and those of products against PyTorch's counter. A multiply-add is 2."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from memback import models
from memback.engine.op import REGISTRY
from tests.models.small import batch
from tests.ops.test_every_op import OPS

N, A, B, C = 5, 7, 3, 4
"""Different primes and no primes, so that no two sizes can stand for each other."""


def flops(name: str, *args: Any, **kwargs: Any) -> int:
    op = REGISTRY[name]
    values = op.bind(args, kwargs)
    return op.count_flops(values, op.run(values, keep=False)[0])


def ones(*shape: int) -> Any:
    return np.ones(shape)


IMAGES, KERNEL = ones(2, 6, 9, 8), ones(4, 3, 3, 2)
PIXELS = 2 * 4 * 5 * 6
"""Of the output with stride (2, 1), padding (1, 0), dilation (1, 2) and 2 groups."""

CLOSED_FORMS = {
    "add": ((ones(N, A), ones(A)), {}, N * A),
    "exp": ((ones(N, A),), {}, N * A),
    "relu": ((ones(N, A),), {}, N * A),
    "sum": ((ones(N, A), 1), {}, N * A),
    "reshape": ((ones(N, A), (A, N)), {}, 0),
    "concatenate": (([ones(N, A), ones(N, A)],), {}, 0),
    "embedding": ((np.zeros((N, A), int), ones(9, B)), {}, 0),
    "linear": ((ones(N, C, A), ones(A, B), ones(B)), {}, 2 * N * C * A * B + N * C * B),
    "matmul": ((ones(2, 1, N, A), ones(C, A, B)), {}, 2 * (2 * C) * N * A * B),
    "conv2d": (
        (IMAGES, KERNEL, ones(4), (2, 1), (1, 0), (1, 2), 2),
        {},
        2 * PIXELS * 3 * 3 * 2 + PIXELS,
    ),
    "max_pool2d": ((IMAGES, (3, 2)), {}, 3 * 2 * 2 * 6 * 3 * 4),
    "softmax": ((ones(N, A),), {}, 5 * N * A),  # maximum, difference, exponential, sum, quotient
    "layer_norm": ((ones(N, A), A, ones(A), ones(A)), {}, 8 * N * A),  # 2 for mean, 2 for variance, 2 for z, 2 affine
    "rms_norm": ((ones(N, A), A, ones(A)), {}, 4 * N * A),
    "scaled_dot_product_attention": (  # two products, the scaled queries, softmax
        (ones(2, C, N, A), ones(2, C, 6, A), ones(2, C, 6, B)),
        {},
        2 * C * N * 6 * (2 * A + 2 * B + 5) + 2 * C * N * A,
    ),
    "upsample": (  # a pass along height, then one along width, of 2 products and a sum each
        (ones(2, 3, 4, 5), (2, 3), "bilinear"),
        {},
        3 * (2 * 3 * 8 * 5) + 3 * (2 * 3 * 8 * 15),
    ),
    "sqerr": ((ones(N, A), ones(N, A)), {}, 3 * N * A + 1),
    "cross_entropy": ((ones(N, A), np.zeros(N, int)), {}, 5 * N * A),
    "dropout": ((ones(N, A), 0.5), {}, 2 * N * A),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_flops_are_the_closed_form(name):
    args, kwargs, expected = CLOSED_FORMS[name]
    assert flops(name, *args, **kwargs) == expected


def test_causal_tiles_in_the_future_are_not_counted():
    q = ones(2, 8, 4)
    whole, causal = (flops("tiled_attention", q, q, q, is_causal=c, block=2) for c in (False, True))
    per_score = 2 * 4 + 2 * 4 + 4
    assert whole == 2 * 64 * per_score + 2 * q.size
    assert causal == 2 * (2 * 2 + 2 * 4 + 2 * 6 + 2 * 8) * per_score + 2 * q.size


@pytest.mark.parametrize("name", OPS)
def test_every_op_cites_an_equation_or_a_paper(name):
    assert re.search(r"Eqs?\. \d|=|arXiv \d|doi 10|et al\. \d{4}", REGISTRY[name].source)


# -- PyTorch counts products alone


@pytest.fixture(scope="module")
def counter():
    pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode


def counted(counter: Any, run: Any) -> int:
    with counter(display=False) as mode:
        run()
    return mode.get_total_flops()


@pytest.mark.torch
def test_products_have_the_flops_that_pytorch_counts(counter):
    import torch

    h, w = torch.ones(N, C, A), torch.ones(A, B)
    assert flops("linear", ones(N, C, A), ones(A, B)) == counted(counter, lambda: torch.nn.functional.linear(h, w.T))
    x, y = torch.ones(2, 1, N, A), torch.ones(C, A, B)
    assert flops("matmul", x.numpy(), y.numpy()) == counted(counter, lambda: torch.matmul(x, y))
    args = ((2, 1), (1, 0), (1, 2), 2)
    images, kernel = torch.tensor(IMAGES), torch.tensor(KERNEL)
    assert flops("conv2d", IMAGES, KERNEL, None, *args) == counted(
        counter, lambda: torch.nn.functional.conv2d(images, kernel, None, *args)
    )


MODELS = {
    "gpt": (lambda: models.GPT(2, 8, 2, 7, 6), lambda twins, *args: twins.gpt(*args, 2)),
    "resnet18": (lambda: models.ResNet(18, 3, 2, 4), lambda twins, *args: twins.resnet(*args)),
    "resnet50": (lambda: models.ResNet(50, 3, 2, 1, "large"), lambda twins, *args: twins.resnet(*args, large=True)),
    "unet": (lambda: models.UNet(2, 3, width=2, depth=2), lambda twins, *args: twins.unet(*args)),
    "vit": (lambda: models.ViT(8, 4, 2, 3, 2, 8, 2), lambda twins, *args: twins.vit(*args, 2)),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_the_products_of_a_model_have_the_flops_that_pytorch_counts(counter, name):
    import torch

    import memback as mb
    from tests.models import torch_twins

    make, twin = MODELS[name]
    model, (x, y) = make(), batch(name, "float32")
    with mb.Tape() as tape:
        loss = model.loss(x, y)
    products = [row for row in tape.rows() if row.op in ("linear", "matmul", "conv2d")]
    additions = sum(int(np.prod(row.output_shape)) for row in products if _has_bias(model, row))
    del loss
    tensors = {n: torch.tensor(p.data) for n, p in [*model.named_parameters()]}
    tensors |= {n: torch.tensor(b) for n, b in model.named_buffers()}
    run = counted(counter, lambda: twin(torch_twins, torch_twins.Scope(tensors), torch.tensor(x), torch.tensor(y)))
    assert sum(row.flops for row in products) - additions == run


def _has_bias(model: Any, row: Any) -> bool:
    layer = dict(model.named_modules()).get(row.path)
    return row.op != "matmul" and getattr(layer, "bias", None) is not None
