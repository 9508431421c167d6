"""Training steps as people write them: each function makes what it trains where it is told, and gives the step.

What a step moves to the device itself, it moves to ``cuda``: on the stub, and as memback predicts it, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["STEPS"]

Build = Callable[[Any], Callable[[], Any]]
STEPS: dict[str, Build] = {}


def case(build: Build) -> Build:
    """Have a step in the table under the name of its function."""
    STEPS[build.__name__.replace("_", "-")] = build
    return build


def perceptron(width: int = 512, layers: int = 3, **how: Any) -> Any:
    """A module, on the CPU."""
    from torch import nn

    parts = [part for _ in range(layers) for part in (nn.Linear(width, width, **how), nn.GELU(), nn.Dropout(0.1))]
    return nn.Sequential(*parts, nn.Linear(width, 10, **how))


def batch(where: Any, dtype: Any = None) -> tuple[Any, Any]:
    """Inputs of 64 rows, and their classes."""
    import torch

    return torch.zeros(64, 512, dtype=dtype).to(where), torch.zeros(64, dtype=torch.long).to(where)


@case
def plain(where: Any) -> Callable[[], Any]:
    """Forward, backward, update, and a loss that is read."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = batch(where)

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


@case
def accumulated_and_clipped(where: Any) -> Callable[[], Any]:
    """Four batches that the step moves itself, gradients clipped by their norm, a schedule."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    batches = [batch("cpu") for _ in range(4)]

    def step() -> None:
        for x, y in batches:
            x, y = x.to("cuda"), y.to("cuda")
            loss = cross_entropy(model(x), y) / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@case
def gradients_kept(where: Any) -> Callable[[], Any]:
    """Gradients that are set to zero and keep their memory, and momentum."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    x, y = batch(where)

    def step() -> None:
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


@case
def scaled(where: Any) -> Callable[[], Any]:
    """Autocast to float16 with a gradient scaler, and gradients clipped in between."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cuda" if where == "cuda" else "cpu")
    x, y = batch(where)

    def step() -> None:
        with torch.autocast("cuda", torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


@case
def averaged(where: Any) -> Callable[[], Any]:
    """An average of the weights as PyTorch keeps it."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = perceptron().to(where)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = batch(where)

    def step() -> None:
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)

    return step


@case
def averaged_by_hand(where: Any) -> Callable[[], Any]:
    """Copies of the weights in a dict, moved one by one."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    copies = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    x, y = batch(where)

    def step() -> None:
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                copies[name].mul_(0.999).add_(tensor, alpha=0.001)

    return step


@case
def stepped_in_backward(where: Any) -> Callable[[], Any]:
    """An optimiser for each parameter, which steps in backward as soon as the gradient is there."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    optimizers = {parameter: torch.optim.Adam([parameter]) for parameter in model.parameters()}

    def hook(parameter: Any) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    x, y = batch(where)

    def step() -> None:
        cross_entropy(model(x), y).backward()

    return step


@case
def master_copies(where: Any) -> Callable[[], Any]:
    """Parameters in bfloat16, and copies in float32 that the optimiser moves."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(torch.bfloat16).to(where)
    masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters)
    x, y = batch(where, torch.bfloat16)

    def step() -> None:
        cross_entropy(model(x), y).backward()
        for parameter, master in zip(model.parameters(), masters, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        for parameter, master in zip(model.parameters(), masters, strict=True):
            parameter.data.copy_(master.data)

    return step


@case
def updated_by_hand(where: Any) -> Callable[[], Any]:
    """No optimiser: parameters less their gradients."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    x, y = batch(where)

    def step() -> None:
        loss = cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient

    return step


@case
def gradient_penalty(where: Any) -> Callable[[], Any]:
    """The gradient of the output by the input is part of the loss."""
    import torch

    model = perceptron().to(where)
    optimizer = torch.optim.Adam(model.parameters())
    x, _ = batch(where)

    def step() -> None:
        inputs = x.detach().requires_grad_()
        scores = model(inputs)
        (slope,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        loss = scores.mean() + (slope.norm(2, dim=1) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@case
def two_networks(where: Any) -> Callable[[], Any]:
    """A generator and a discriminator in turns."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

    generator, critic = perceptron(layers=2).to(where), perceptron(layers=2).to(where)
    wide = torch.nn.Linear(10, 512).to(where)
    makes = torch.optim.Adam([*generator.parameters(), *wide.parameters()])
    judges = torch.optim.Adam(critic.parameters())
    x, _ = batch(where)

    def step() -> None:
        made = wide(generator(torch.randn(64, 512, device="cuda")))
        ones = torch.ones(64, 10, device="cuda")
        judges.zero_grad()
        loss = loss_of(critic(x), ones) + loss_of(critic(made.detach()), torch.zeros_like(ones))
        loss.backward()
        judges.step()
        makes.zero_grad()
        loss_of(critic(made), ones).backward()
        makes.step()

    return step


@case
def sharp(where: Any) -> Callable[[], Any]:
    """Two passes: the first moves the weights to where the loss is worse, the second gives the gradient there."""
    import torch
    from torch.nn.functional import cross_entropy

    model = perceptron().to(where)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = batch(where)

    def step() -> None:
        cross_entropy(model(x), y).backward()
        moved = []
        with torch.no_grad():
            norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
            for parameter in model.parameters():
                moved.append(parameter.grad * (0.05 / (norm + 1e-12)))
                parameter.add_(moved[-1])
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter, more in zip(model.parameters(), moved, strict=True):
                parameter.sub_(more)
        optimizer.step()
        optimizer.zero_grad()

    return step
