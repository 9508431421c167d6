"""What a model of transformers is trained on: inputs and labels of the shapes that its config says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from memback.bridges.torch.hugging_face.config import transformers
from memback.bridges.torch.recording.inputs import Input
from memback.errors import UsageError

__all__ = ["LONGEST", "Sizes", "inputs_of"]

LONGEST = 1024
"""Tokens of a text where no length is given, if the model takes so many."""

_SAMPLES, _CHOICES, _IMAGE = 160_000, 4, 224
_WHOLE = torch.int64
_LIMITS = ("max_target_positions", "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


@dataclass(frozen=True)
class Sizes:
    """How many samples, and how many tokens (or samples of sound) each has; None is for the config to say."""

    batch: int = 1
    sequence: int | None = None


def inputs_of(
    config: Any, kind: Any, sizes: Sizes, given: Sequence[Input] = (), floating: torch.dtype = torch.float32
) -> tuple[dict[str, Input], dict[str, Any]]:
    """The inputs and labels of a class of models by name, and what a report says of them.

    No mask is among them, so that all tokens count; those that are ``given`` by name take the places of the others, or
    are added.

    Raises:
        UsageError: a text is longer than the model takes, one is given that the model does not take, or it takes what
            is not known here.
    """
    taken = _Taken(config, kind, sizes, floating)
    for one in given:
        if one.name is None or one.name not in taken.names:
            raise UsageError(
                f"--input {one}: {kind.__name__} takes its inputs by name: write NAME={one} with one of"
                f" {', '.join(taken.names)}"
            )
    named = {one.name: one for one in given if one.name is not None}
    made = {one.name: one for one in (*taken.inputs(set(named)), *taken.labels()) if one.name is not None}
    made |= named
    return made, {"batch": sizes.batch, **taken.said, "inputs": [str(one) for one in made.values()]}


class _Taken:
    """What a class of models takes."""

    def __init__(self, config: Any, kind: Any, sizes: Sizes, floating: torch.dtype) -> None:
        self.config, self.kind, self.sizes, self.floating = config, kind, sizes, floating
        self.text = config.get_text_config()
        self.names = [name for name in inspect.signature(kind.forward).parameters if name not in ("self", "kwargs")]
        self.said: dict[str, Any] = {}

    # -- inputs

    def inputs(self, given: set[str]) -> Iterator[Input]:
        main = self.kind.main_input_name
        if main in given:
            return
        make = {
            "input_ids": self._text,
            "pixel_values": self._image,
            "input_features": self._features,
            "input_values": self._sound,
        }.get(main)
        if make is None:
            raise UsageError(
                f"it is not known what {self.kind.__name__} takes as {main}: write --input {main}=SHAPE[:DTYPE]"
            )
        yield make(main)
        if "return_loss" in self.names and main == "input_ids" and "pixel_values" in self.names:
            yield self._image("pixel_values")
        if self.config.is_encoder_decoder and "labels" not in self.names and "decoder_input_ids" in self.names:
            yield self._tokens("decoder_input_ids")

    def _text(self, name: str) -> Input:
        one = self._tokens(name)
        if self._is("MULTIPLE_CHOICE"):
            return replace(one, shape=(self.sizes.batch, _CHOICES, self.length))
        return one

    def _tokens(self, name: str) -> Input:
        padding = getattr(self.text, "pad_token_id", None)
        other = 1 if name == "input_ids" and padding == 0 else None  # no token is padding
        return Input(name, (self.sizes.batch, self.length), _WHOLE, other)

    def _image(self, name: str) -> Input:
        vision = getattr(self.config, "vision_config", None) or self.config
        frames = (vision.num_frames,) if self._is("VIDEO_CLASSIFICATION") and hasattr(vision, "num_frames") else ()
        channels = getattr(vision, "num_channels", 3)
        return self._numbers(name, self.sizes.batch, *frames, channels, *self.image)

    @property
    def image(self) -> tuple[int, int]:
        """Height and width."""
        vision = getattr(self.config, "vision_config", None) or self.config
        size = getattr(vision, "image_size", None) or _IMAGE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return int(height), int(width)

    def _features(self, name: str) -> Input:
        """Spectra: of Whisper's fixed length, or of so many as are asked for."""
        config = self.config
        if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
            return self._numbers(name, self.sizes.batch, config.num_mel_bins, 2 * config.max_source_positions)
        if hasattr(config, "input_feat_per_channel"):
            return self._numbers(name, self.sizes.batch, self.length, config.input_feat_per_channel)
        raise UsageError(f"it is not known what shape {self.kind.__name__} takes {name} of: write --input {name}=SHAPE")

    def _sound(self, name: str) -> Input:
        if hasattr(self.config, "num_mel_bins") and hasattr(self.config, "max_length"):
            return self._numbers(name, self.sizes.batch, self.config.max_length, self.config.num_mel_bins)
        samples = self.sizes.sequence or _SAMPLES
        self.said["sequence"] = samples
        return self._numbers(name, self.sizes.batch, samples)

    # -- labels

    def labels(self) -> Iterator[Input]:
        batch = self.sizes.batch
        if "start_positions" in self.names:
            yield self._whole("start_positions", batch)
            yield self._whole("end_positions", batch)
        elif "labels" in self.names and self._is("SEMANTIC_SEGMENTATION"):
            yield self._whole("labels", batch, *self.image)
        elif "labels" in self.names and self._is("SEQUENCE_CLASSIFICATION") and self.config.num_labels == 1:
            yield self._numbers("labels", batch)
        elif "labels" in self.names and self._is(*_OF_THE_WHOLE):
            yield self._whole("labels", batch)
        elif "labels" in self.names and self._is("CTC"):
            yield self._whole("labels", batch, LONGEST // 16)
        elif "labels" in self.names and self._is(*_OF_TOKENS):
            yield self._tokens("labels")
        if "next_sentence_label" in self.names:
            yield self._whole("next_sentence_label", batch)

    @property
    def length(self) -> int:
        """Tokens of a text.

        Raises:
            UsageError: there are more than the model has positions for.
        """
        most = next((n for name in _LIMITS if isinstance(n := getattr(self.text, name, None), int) and n > 0), None)
        length = self.sizes.sequence
        if length is None:
            length = LONGEST if most is None else min(LONGEST, most if most < 64 else most // 64 * 64)
        elif most is not None and length > most:
            limit = next(name for name in _LIMITS if getattr(self.text, name, None) == most)
            raise UsageError(
                f"--sequence {length}: the config has positions for {most:,} tokens; write --arg {limit}={length}, too"
            )
        self.said["sequence"] = length
        return length

    def _is(self, *families: str) -> bool:
        """Whether the class is in one of the families of transformers' auto classes."""
        auto = transformers().models.auto.modeling_auto
        for family in families:
            for names in getattr(auto, f"MODEL_FOR_{family}_MAPPING_NAMES").values():
                if self.kind.__name__ in ((names,) if isinstance(names, str) else names):
                    return True
        return False

    # -- tensors

    def _whole(self, name: str, *shape: int) -> Input:
        return Input(name, shape, _WHOLE)

    def _numbers(self, name: str, *shape: int) -> Input:
        return Input(name, shape, self.floating)


_OF_THE_WHOLE = (
    "SEQUENCE_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "MULTIPLE_CHOICE",
    "NEXT_SENTENCE_PREDICTION",
)
_OF_TOKENS = (
    "CAUSAL_LM",
    "MASKED_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "TOKEN_CLASSIFICATION",
    "PRETRAINING",
)
