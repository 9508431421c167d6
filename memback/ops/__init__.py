"""Every op by its name; each is declared in its module, whose ``__all__`` names its ops (:mod:`memback.engine.op`)."""

# ruff: noqa: F403

from __future__ import annotations

from memback.engine import calls as _calls  # noqa: F401 - has calls of ops recorded
from memback.ops import operators as _operators  # noqa: F401 - puts the operators on Tensor

# isort: split
from memback.ops import (
    activations,
    attention,
    convolution,
    elementwise,
    indexing,
    linear_algebra,
    loss,
    normalisation,
    random,
    reductions,
    shape,
)
from memback.ops.activations import *
from memback.ops.attention import *
from memback.ops.convolution import *
from memback.ops.elementwise import *
from memback.ops.indexing import *
from memback.ops.linear_algebra import *
from memback.ops.loss import *
from memback.ops.normalisation import *
from memback.ops.random import *
from memback.ops.reductions import *
from memback.ops.rotary import rotary
from memback.ops.shape import *
from memback.ops.softmax import attention_softmax, log_softmax, softmax

__all__ = ["attention_softmax", "log_softmax", "rotary", "softmax"]
__all__ += activations.__all__ + attention.__all__ + convolution.__all__ + elementwise.__all__ + indexing.__all__
__all__ += linear_algebra.__all__ + loss.__all__ + normalisation.__all__ + random.__all__ + reductions.__all__
__all__ += shape.__all__
