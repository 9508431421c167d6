"""Plans over calls beside what people do by hand, for models of Hugging Face's: ``python benchmarks/torch_plans.py``.

Each alternative runs for real, on a CPU, under the same tracker: its peak, as a share of the plain step's, and the
FLOPs of the products that it computes again, as a share of a forward pass's. For each budget the cheapest alternative
of a kind that is within it counts. Gradients must have the bits of the plain step's. Writes ``torch_plans.md``.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import memback.bridges.torch as bridge
from memback.bridges.torch.planning.plan import planning_of
from memback.bridges.torch.recording.step import Step, sum_of_outputs
from memback.profiling.mode import Mode

BUDGETS = (0.75, 0.6, 0.5, 0.4, 0.3)
WIDTH, BATCH, LENGTH, VOCABULARY, LAYERS = 128, 4, 128, 500, 8

_aten = torch.ops.aten
PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}
ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
}

How = "str | Callable[..., Any] | None"


def models() -> dict[str, Callable[[], tuple[torch.nn.Module, Any, dict[str, Any]]]]:
    """By name, what makes a model, its blocks, and what it is called with."""
    import transformers

    tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    common: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "hidden_size": WIDTH}
    none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}

    def gpt2() -> Any:
        config = transformers.GPT2Config(
            n_layer=LAYERS, n_embd=WIDTH, n_head=4, vocab_size=VOCABULARY, n_positions=LENGTH, use_cache=False,
            bos_token_id=1, eos_token_id=2, **none,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        return model, model.transformer.h, {"input_ids": tokens, "labels": tokens}

    def llama() -> Any:
        config = transformers.LlamaConfig(
            **common, intermediate_size=344, num_key_value_heads=2, vocab_size=VOCABULARY, use_cache=False
        )
        model = transformers.LlamaForCausalLM(config)
        return model, model.model.layers, {"input_ids": tokens, "labels": tokens}

    def bert() -> Any:
        config = transformers.BertConfig(
            **common, intermediate_size=4 * WIDTH, vocab_size=VOCABULARY, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
        return model, model.bert.encoder.layer, {"input_ids": tokens, "labels": tokens}

    return {"GPT-2": gpt2, "Llama": llama, "BERT": bert}


def selective(ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep products and attention, recompute the rest: PyTorch's and Korthikanti et al.'s selective recomputation."""
    kept = func in PRODUCTS or func in ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def by_hand(blocks: Any, how: list[Any]) -> Iterator[None]:
    """In the block each block is checkpointed: whole, by a policy of ops, or not at all."""
    wrapped = []
    for block, one in zip(blocks, how, strict=True):
        if one is not None:
            options = (
                {} if one == "whole" else {"context_fn": functools.partial(create_selective_checkpoint_contexts, one)}
            )
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **options)
            wrapped.append(block)
    try:
        yield
    finally:
        for block in wrapped:
            del block.forward


def alternatives() -> dict[str, list[list[Any]]]:
    """By kind, the ways to checkpoint the blocks."""
    n = LAYERS
    whole = [["whole"] * k + [None] * (n - k) for k in range(1, n + 1)]
    some = [[selective] * k + [None] * (n - k) for k in range(1, n)]
    return {"first k blocks": whole, "selective": [["whole"] * k + [selective] * (n - k) for k in range(n)] + some}


def measured(step: Step, plain: Any) -> tuple[float, float]:
    """A step's peak and its recomputed products, both as shares of the plain step's."""
    account = step.account(Mode("full"))
    assert account.gradient_sha256 == plain.gradient_sha256
    peak = account.tracker.peak.bytes / plain.tracker.peak.bytes
    return peak, account.tracker.recomputed_flops / plain.tracker.flops


def rows(name: str, make: Callable[[], Any]) -> Iterator[str]:
    """The table's rows for a model."""
    torch.manual_seed(0)
    module, blocks, kwargs = make()
    step = Step.of(module.train(), (), kwargs, sum_of_outputs, None)
    plain = step.account(Mode("full"))
    full = plain.tracker.peak.bytes
    found: dict[str, list[tuple[float, float]]] = {}
    for kind, ways in alternatives().items():
        for way in ways:
            with by_hand(blocks, way):
                found.setdefault(kind, []).append(measured(step, plain))
    plannings = {how: planning_of(step, how) for how in ("checkpoint", "calls")}
    for budget in BUDGETS:
        fitting = [[(extra, peak) for peak, extra in pairs if peak <= budget] for pairs in found.values()]
        cells = [_cell(min(pairs, default=None)) for pairs in fitting]
        for planning in plannings.values():
            try:
                plan = planning.plan(int(budget * full))
            except bridge.NoPlanError:
                cells.append("none")
                continue
            with plan.apply(module):
                peak, extra = measured(step, plain)
            assert int(peak * full + 0.5) == plan.peak_bytes
            cells.append(_cell((extra, peak)))
        yield f"| {name} | {budget:.0%} | " + " | ".join(cells) + " |"


def _cell(found: tuple[float, float] | None) -> str:
    return "none" if found is None else f"{found[1]:.2f} / {found[0]:.0%}"


def main() -> None:
    """Write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import transformers

    lines = [
        "| model | budget | first k blocks, checkpointed by hand | selective checkpoints by hand | memback, blocks |"
        " memback, calls |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, make in models().items():
        for row in rows(name, make):
            lines.append(row)
            print(row, flush=True)
    about = (
        f"PyTorch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}; {LAYERS} layers,"
        f" width {WIDTH}, {BATCH} × {LENGTH} tokens, float32, CPU. Peak, of the plain step's / products computed again."
    )
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, "", about, ""]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
