"""Training steps of models that others wrote: how each model, its inputs, its loss and its optimiser are made.

Nothing here needs a GPU, and nothing but the standard library is imported before a case is built: the stub's run, a run
on a real GPU and memback's predictions on a CPU build of PyTorch share these definitions. No weights are downloaded.

Models of transformers look at values: whether a row holds several sequences, or padding. Here none does, so that on a
device no mask is made. For fake tensors they make one, because they take them for a sign of tracing
(``transformers.utils.import_utils.is_tracing``): a step on fake tensors is the device's only where that is undone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "MODELS", "OPTIMIZERS", "PRECISIONS", "Case", "Recipe", "Step"]


@dataclass(frozen=True)
class Recipe:
    """One call of a model: ``make()`` builds it, ``loss(output)`` is a scalar.

    ``args`` and ``kwargs`` give inputs as (shape, classes): whole numbers below it, or floats where it is None.
    """

    make: Callable[[], Any]
    loss: Callable[[Any], Any]
    args: tuple[tuple[tuple[int, ...], int | None], ...] = ()
    kwargs: dict[str, tuple[tuple[int, ...], int | None]] = field(default_factory=dict)
    lora: tuple[str, ...] = ()
    """The modules that an adapter is put on, by the ends of their names; empty where none is."""
    library: str = "torch"
    notes: str = ""
    """What the stub's figures do not have."""


@dataclass(frozen=True)
class Step:
    """A case that has been built: everything is on a CPU (or on the device named), in its dtype, in training mode."""

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Callable[[Any], Any]
    optimizer: Callable[[Iterable[Any]], Any]
    """Makes the optimiser of the parameters that are trained."""
    autocast: bool
    """Whether forward and loss run under ``torch.autocast`` of the device, in bfloat16."""
    accumulate: int
    """How many times forward and backward run before the update."""
    zeroed_late: bool
    """Whether gradients are set to None between forward and backward, instead of after the update."""

    def to(self, device: Any) -> Step:
        """Move the module, then the inputs in their order, as a training script does."""
        module = self.module.to(device)
        args = tuple(value.to(device) for value in self.args)
        kwargs = {name: value.to(device) for name, value in self.kwargs.items()}
        return dataclasses.replace(self, module=module, args=args, kwargs=kwargs)


@dataclass(frozen=True)
class Case:
    """A model under a precision, an optimiser and a variation, on a card."""

    model: str
    precision: str = "fp32"
    optimizer: str = "adamw"
    variation: str = ""
    card: str = "h200"

    @property
    def cudnn_attention(self) -> bool:
        """Whether attention may use cuDNN's kernels, as it does by default on capability 9.0 and 10.0.

        Elsewhere it is switched off (``torch.backends.cuda.enable_cudnn_sdp``): only cuDNN knows its workspace.
        """
        return self.variation == "cudnn-attention"

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.model, self.precision, self.optimizer, self.variation, self.card)))

    def build(self, device: Any = "cpu") -> Step:
        """Build it: ``device`` is where tensors are made, a CPU, ``meta``, or a GPU."""
        import torch

        recipe = MODELS[self.model]
        floats = torch.bfloat16 if self.precision == "bf16" else torch.float32
        torch.manual_seed(0)
        with torch.device(device):
            module = recipe.make().train()
            if self.variation == "lora":
                module = with_lora(module, recipe.lora)
            elif self.variation == "checkpointing":
                module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            module = module.to(floats)
            args = tuple(given(*value, floats) for value in recipe.args)
            kwargs = {name: given(*value, floats) for name, value in recipe.kwargs.items()}
        accumulate = 2 if self.variation == "accumulation" else 1
        amp, late = self.precision == "amp", self.variation == "zeroed-late"
        return Step(module, args, kwargs, recipe.loss, OPTIMIZERS[self.optimizer], amp, accumulate, late)


def given(shape: tuple[int, ...], classes: int | None, dtype: Any) -> Any:
    """Return an input: zeros, which are valid as tokens and as classes alike."""
    import torch

    return torch.zeros(shape, dtype=dtype if classes is None else torch.long)


def with_lora(module: Any, targets: tuple[str, ...]) -> Any:
    """Put adapters of rank 8 on the modules of these names, and freeze the rest."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=list(targets))
    return peft.get_peft_model(module, config)


# -- losses


def of_output(output: Any) -> Any:
    """The loss that a Hugging Face model computes itself from its labels."""
    return output.loss


def classes(output: Any) -> Any:
    """Cross-entropy of a classifier's logits, (batch, classes), with class 0."""
    import torch

    output = getattr(output, "logits", output)
    return torch.nn.functional.cross_entropy(output, torch.zeros(len(output), dtype=torch.long, device=output.device))


def squares(output: Any) -> Any:
    """The mean of the squares of an output, or of the first of several."""
    return (output[0] if isinstance(output, tuple) else output).square().mean()


# -- models


def hugging_face(model: str, config: str, **options: Any) -> Callable[[], Any]:
    """Return what builds a model of ``transformers`` from a configuration."""

    def make() -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return make


def torchvision(name: str, **options: Any) -> Callable[[], Any]:
    """Return what builds a model of ``torchvision``."""

    def make() -> Any:
        import torchvision as library

        return getattr(library.models, name)(**options)

    return make


def of_torch(build: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return what builds a model of ``torch.nn``, which ``build`` is given."""

    def make() -> Any:
        from torch import nn

        return build(nn)

    return make


def language_model(make: Callable[[], Any], batch: int, tokens: int, lora: tuple[str, ...] = (), **more: Any) -> Recipe:
    """A model of tokens whose labels are its input."""
    of = ((batch, tokens), 100)
    return Recipe(make, of_output, (), {"input_ids": of, "labels": of} | more, lora, "transformers")


CONVOLUTIONS = "the workspace of convolutions is not in the figures: only cuDNN knows how much it is"


def classifier(make: Callable[[], Any], batch: int, size: int = 224, library: str = "torchvision") -> Recipe:
    """A model of images, (batch, 3, size, size)."""
    pixels: tuple[tuple[int, ...], int | None] = ((batch, 3, size, size), None)
    if library == "transformers":
        return Recipe(make, classes, (), {"pixel_values": pixels}, (), library)
    return Recipe(make, classes, (pixels,), library=library, notes=CONVOLUTIONS)


def block(nn: Any) -> list[Any]:
    """A layer of the perceptron."""
    return [nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.1)]


def decoder(family: str, batch: int, tokens: int, lora: tuple[str, ...] = (), **options: Any) -> Recipe:
    """A small causal language model of a family of ``transformers``."""
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8000,
        "use_cache": False,
    }
    make = hugging_face(f"{family}ForCausalLM", f"{family}Config", **(sizes | options))
    return language_model(make, batch, tokens, lora)


def masked(family: str, batch: int, tokens: int, **options: Any) -> Recipe:
    """A small masked language model of a family of ``transformers``."""
    sizes = {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 8000,
    }
    return language_model(hugging_face(f"{family}ForMaskedLM", f"{family}Config", **(sizes | options)), batch, tokens)


ATTENTION = ("q_proj", "v_proj")
GPT2_4 = {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 1000, "use_cache": False}
LLAMA_WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
BERT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
}
OPT = {"hidden_size": 512, "ffn_dim": 2048, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 8000}
T5 = {
    "d_model": 256,
    "d_ff": 1024,
    "d_kv": 32,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 8,
    "vocab_size": 8000,
    "decoder_start_token_id": 0,
}
BART = {
    "d_model": 256,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 1024,
    "vocab_size": 8000,
}
BART_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
WHISPER = {"d_model": 256, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024}
WHISPER_MORE = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "vocab_size": 4000,
}
WAV2VEC2 = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024}
VIT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}

DECODERS: dict[str, Recipe] = {
    "gpt2": language_model(hugging_face("GPT2LMHeadModel", "GPT2Config", use_cache=False), 8, 1024, ("c_attn",)),
    "gpt2-4": language_model(hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2_4), 4, 256, ("c_attn",)),
    "gpt2-eager": language_model(
        hugging_face("GPT2LMHeadModel", "GPT2Config", attn_implementation="eager", **GPT2_4), 4, 256
    ),
    "llama-wide": decoder("Llama", 2, 1024, ATTENTION, **LLAMA_WIDE),
    "llama": decoder("Llama", 4, 512, ATTENTION),
    "qwen3": decoder("Qwen3", 4, 512, ATTENTION, head_dim=64),
    "gemma": decoder("Gemma", 4, 512, ATTENTION, head_dim=64),
    "mistral": decoder("Mistral", 4, 512, ATTENTION, sliding_window=128),
    "phi3": decoder("Phi3", 4, 512, pad_token_id=0),
    "olmo2": decoder("Olmo2", 4, 512),
    "gpt-neox": decoder("GPTNeoX", 4, 512),
    "opt": language_model(
        hugging_face("OPTForCausalLM", "OPTConfig", word_embed_proj_dim=512, use_cache=False, **OPT), 4, 512
    ),
    "mixtral": dataclasses.replace(
        decoder("Mixtral", 4, 512, num_local_experts=4, num_experts_per_tok=2),
        notes="in float32 an expert's rows are read back, and are none: copies that products make of them are missing",
    ),
}

ENCODERS: dict[str, Recipe] = {
    "bert-base": masked("Bert", 8, 512, **BERT_BASE),
    "bert": masked("Bert", 8, 256),
    "roberta": masked("Roberta", 8, 256),
    "electra": masked("Electra", 8, 256),
    "albert": masked("Albert", 8, 256),
    "modernbert": masked("ModernBert", 8, 256, pad_token_id=0, eos_token_id=1, bos_token_id=2, cls_token_id=3),
}

ENCODER_DECODERS: dict[str, Recipe] = {
    "t5": language_model(hugging_face("T5ForConditionalGeneration", "T5Config", use_cache=False, **T5), 8, 256),
    "bart": language_model(
        hugging_face("BartForConditionalGeneration", "BartConfig", use_cache=False, **BART, **BART_HEADS), 8, 256
    ),
}

SPEECH: dict[str, Recipe] = {
    "whisper": Recipe(
        hugging_face(
            "WhisperForConditionalGeneration", "WhisperConfig", use_cache=False, **WHISPER, **BART_HEADS, **WHISPER_MORE
        ),
        of_output,
        (),
        {"input_features": ((2, 80, 3000), None), "labels": ((2, 128), 100)},
        library="transformers",
    ),
    "wav2vec2": Recipe(
        hugging_face(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2Config",
            apply_spec_augment=False,
            layerdrop=0.0,
            **WAV2VEC2,
        ),
        classes,
        (),
        {"input_values": ((2, 32000), None)},
        library="transformers",
    ),
}

VISION: dict[str, Recipe] = {
    "hf-vit": classifier(hugging_face("ViTForImageClassification", "ViTConfig", **VIT), 16, library="transformers"),
    "resnet18": classifier(torchvision("resnet18"), 32),
    "resnet50": classifier(torchvision("resnet50"), 32),
    "vit-b16": classifier(torchvision("vit_b_16"), 32),
    "swin-t": classifier(torchvision("swin_t"), 16),
    "convnext-tiny": classifier(torchvision("convnext_tiny"), 16),
    "efficientnet-b0": classifier(torchvision("efficientnet_b0"), 16),
    "mobilenet-v3": classifier(torchvision("mobilenet_v3_large"), 32),
    "densenet121": classifier(torchvision("densenet121"), 8),
    "regnet-y": classifier(torchvision("regnet_y_400mf"), 16),
    "vgg11": classifier(torchvision("vgg11"), 8),
    "vit-l16": classifier(torchvision("vit_l_16", num_classes=10), 64),
    "vit-l16-of-16": classifier(torchvision("vit_l_16", num_classes=10), 16),
}

RECURRENT = "what cuDNN keeps of a recurrent layer for backward is an estimate: only cuDNN knows how much it is"

LAYERS: dict[str, Recipe] = {
    "mlp": Recipe(
        of_torch(lambda nn: nn.Sequential(*(layer for _ in range(8) for layer in block(nn)))),
        squares,
        (((512, 1024), None),),
    ),
    "transformer-encoder": Recipe(
        of_torch(lambda nn: nn.TransformerEncoder(nn.TransformerEncoderLayer(512, 8, batch_first=True), 4)),
        squares,
        (((8, 256, 512), None),),
    ),
    "transformer": Recipe(
        of_torch(lambda nn: nn.Transformer(256, 8, 3, 3, 1024, batch_first=True)),
        squares,
        (((8, 256, 256), None), ((8, 128, 256), None)),
    ),
    "lstm": Recipe(
        of_torch(lambda nn: nn.LSTM(256, 512, 2, batch_first=True, dropout=0.1)),
        squares,
        (((32, 128, 256), None),),
        notes=RECURRENT,
    ),
    "gru": Recipe(
        of_torch(lambda nn: nn.GRU(256, 512, 2, batch_first=True, bidirectional=True)),
        squares,
        (((32, 128, 256), None),),
        notes=RECURRENT,
    ),
}

MODELS: dict[str, Recipe] = DECODERS | ENCODERS | ENCODER_DECODERS | SPEECH | VISION | LAYERS


# -- optimisers


def of_optim(name: str, **options: Any) -> Callable[[Iterable[Any]], Any]:
    """Return what makes an optimiser of ``torch.optim`` of some parameters."""

    def make(parameters: Iterable[Any]) -> Any:
        import torch

        return getattr(torch.optim, name)(parameters, **options)

    return make


OPTIMIZERS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "adamw": of_optim("AdamW"),
    "adamw-fused": of_optim("AdamW", fused=True),
    "adamw-loop": of_optim("AdamW", foreach=False),
    "adam": of_optim("Adam"),
    "sgd": of_optim("SGD", lr=0.1, momentum=0.9),
    "adafactor": of_optim("Adafactor"),
}

PRECISIONS = ("fp32", "amp", "bf16")


# -- cases


def cases() -> list[Case]:
    """Every model in every precision; a few under every optimiser, with each variation, and on other cards.

    Those of ViT-L/16 are steps whose reserved memory on a card was published: 26.79 GB in float32, 18.21 GB under
    autocast, 13.82 GB in bfloat16, 5.69 GB in bfloat16 with 16 images. The stub says 26.83, 17.73, 13.11 and 5.47 GB.
    """
    published = ("vit-l16", "vit-l16-of-16")
    made = [Case(model, precision) for model in MODELS if model not in published for precision in PRECISIONS]
    made += [Case("vit-l16", precision, "adam", "zeroed-late") for precision in PRECISIONS]
    made += [Case("vit-l16-of-16", "bf16", "adam", "zeroed-late"), Case("llama", "fp32", "adamw", "zeroed-late")]
    few = ("gpt2-4", "llama", "bert", "resnet50", "vit-b16", "mlp")
    others = [optimizer for optimizer in OPTIMIZERS if not optimizer.startswith("adam") or "-" in optimizer]
    made += [Case(model, "fp32", optimizer) for model in few for optimizer in others]
    made += [Case("llama", precision, optimizer) for precision in ("amp", "bf16") for optimizer in others]
    with_adapters = [model for model, recipe in MODELS.items() if recipe.lora]
    made += [Case(model, "bf16", "adamw", "lora") for model in with_adapters if model not in ("gpt2", "llama-wide")]
    made += [Case("llama", precision, "adamw", "lora") for precision in ("fp32", "amp")]
    checkpointed = ("gpt2-4", "llama", "bert", "t5")
    made += [
        Case(model, precision, "adamw", "checkpointing") for model in checkpointed for precision in ("fp32", "bf16")
    ]
    made += [Case(model, "bf16", "adamw", "cudnn-attention") for model in ("gpt2-4", "llama", "bert", "vit-b16")]
    made += [Case(model, "amp", "adamw", "accumulation") for model in ("gpt2-4", "llama", "resnet18", "mlp")]
    made += [
        Case(model, precision, card=card)
        for card in ("t4", "a100-40gb", "rtx4090")
        for model in ("gpt2-4", "llama", "vit-b16")
        for precision in ("fp32", "amp")
    ]
    return made


CASES: dict[str, Case] = {case.name: case for case in cases()}
