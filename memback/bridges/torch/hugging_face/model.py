"""The model of a config: which class it is, and how it is made without memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from memback.bridges.torch.hugging_face.config import config_of, transformers
from memback.bridges.torch.hugging_face.inputs import Sizes, inputs_of
from memback.bridges.torch.loading import Loaded
from memback.bridges.torch.recording.inputs import Input
from memback.bridges.torch.recording.paths import described
from memback.errors import MembackError, UsageError, shorten

__all__ = ["class_of", "load_config"]

_FAMILIES = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "MASKED_LM",
    "CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
)
"""Of a config that names no architecture, the first of these that its model has is taken."""


def load_config(
    reference: str,
    sizes: Sizes,
    given: Sequence[Input] = (),
    device: torch.device | None = None,
    dry: bool = False,
    changes: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Loaded:
    """Make the model of a config, in training mode and without a cache of keys and values, and its inputs and labels.

    Args:
        reference: as :func:`~memback.bridges.torch.hugging_face.config.config_of`.
        sizes: of the inputs.
        given: inputs by name, in the place of those that the config says, or besides.
        device: where everything is; by default on the CPU.
        dry: whether parameters and floating-point inputs have no memory (the device ``meta``).
        changes: settings of the config, as text by name.
        dtype: of the parameters and floating-point inputs; by default the config's, else float32.

    Raises:
        UsageError: as ``config_of`` and :func:`~memback.bridges.torch.hugging_face.inputs.inputs_of`; or the config
            names a class that is not there.
        MembackError: the model can't be made.
    """
    config = config_of(reference, changes or {})
    if getattr(config, "use_cache", False) and "use_cache" not in (changes or {}):
        config.use_cache = False  # as trainers do: no token is generated
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = getattr(config, "pad_token_id", None) or 0  # labels are shifted behind it
    kind = class_of(config, reference)
    model = _made(lambda: kind(config), dtype or _dtype_of(config), dry, reference)
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    named, data = inputs_of(config, kind, sizes, given, floating)
    where = torch.device("cpu") if device is None or dry else device
    made = {
        name: one.make(torch.device("meta") if dry and one.dtype.is_floating_point else where)
        for name, one in named.items()
    }
    if not any(one.name == "input_ids" for one in given):
        _end(made.get("input_ids"), config)
    paired = "pixel_values" in made and "return_loss" in inspect.signature(kind.forward).parameters
    kwargs: dict[str, Any] = {**made, **({"return_loss": True} if paired else {})}
    return Loaded(model.train() if dry else model.train().to(where), (), kwargs, data)


def _end(ids: torch.Tensor | None, config: Any) -> None:
    """Have each text end with the token for its end, by which some classes find what they classify."""
    end, known = getattr(config, "eos_token_id", None), getattr(config.get_text_config(), "vocab_size", None) or 0
    if ids is not None and isinstance(end, int) and 0 <= end < known:
        ids[..., -1] = end


def class_of(config: Any, reference: str) -> Any:
    """The class that the config names; without a name, the one that its model is usually trained as.

    Raises:
        UsageError: transformers has none of this name.
    """
    library = transformers()
    names = [name for name in getattr(config, "architectures", None) or () if isinstance(name, str)]
    for name in names:
        kind = getattr(library, name, None) if name.isidentifier() else None
        if isinstance(kind, type) and issubclass(kind, library.PreTrainedModel) and _is_of(kind, config):
            return kind
    if names:
        raise UsageError(
            f"{reference}: transformers {library.__version__} has no {shorten(names[0])} of a"
            f" {type(config).__name__}: correct the config's architectures, or write a factory: MODULE:FACTORY"
        )
    for family in (*(f"MODEL_FOR_{name}_MAPPING" for name in _FAMILIES), "MODEL_MAPPING"):
        mapping = getattr(library.models.auto.modeling_auto, family)
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise UsageError(f"{reference}: transformers has no model of a {type(config).__name__}")


def _is_of(kind: Any, config: Any) -> bool:
    wanted = getattr(kind, "config_class", None)
    return wanted is None or isinstance(config, wanted)


def _dtype_of(config: Any) -> torch.dtype:
    found = getattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", None)
    found = getattr(torch, found, None) if isinstance(found, str) else found
    return found if isinstance(found, torch.dtype) else torch.float32


def _made(make: Callable[[], torch.nn.Module], dtype: torch.dtype, dry: bool, reference: str) -> torch.nn.Module:
    """The model, whose floating-point tensors are of a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        try:
            with _Weightless() if dry else nullcontext():
                return make()
        except Exception:
            if not dry:
                raise
            with torch.device("meta"):  # numbers of it meet parameters that have none
                return make()
    except Exception as error:
        raise MembackError(f"{reference} can't be made: {described(error)}") from error
    finally:
        torch.set_default_dtype(before)


class _Weightless(TorchFunctionMode):
    """In the block what parameters are made of has no memory; ranges, indices and masks have, and keep their values."""

    _MADE = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        if function in self._MADE and kwargs.get("device") is None and dtype.is_floating_point:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)
