"""A report as a profile of a four-layer MLP gives it: made-up times, consistent bytes."""

from __future__ import annotations

from memback.profiling.report import (
    Arguments,
    Event,
    Layer,
    Peak,
    Profile,
    Report,
    Run,
    SavedValue,
    Seconds,
)

BATCH, WIDTH, CLASSES, DEPTH = 512, 256, 10, 4
HIDDEN = BATCH * WIDTH * 4
LOGITS = BATCH * CLASSES * 4
WEIGHT = WIDTH * WIDTH * 4 + WIDTH * 4
HEAD = WIDTH * CLASSES * 4 + CLASSES * 4
PARAMETERS = DEPTH * WEIGHT + HEAD
SAME_BITS = "5d41402abc4b2a76b9719d911017c592ae3f3e2f0b1c4d5e6f708192a3b4c5d6"


def report() -> Report:
    return Report(
        memback="0.1.0",
        created="2025-06-01T09:30:00Z",
        machine={
            "system": "Linux",
            "machine": "x86_64",
            "python": "3.12.4",
            "numpy": "2.2.1",
            "cores": 8,
            "memory_bytes": 2**35,
        },
        profile=Profile(
            name="mlp",
            model={"name": "mlp", "hidden": [WIDTH] * DEPTH},
            data={"name": "noise", "batch": BATCH},
            dtype="float32",
            sha256="0" * 64,
        ),
        arguments=Arguments(
            parameter_bytes=PARAMETERS,
            buffer_bytes=0,
            input_bytes=HIDDEN + BATCH * 8,
            optimizer_bytes=2 * PARAMETERS,
        ),
        runs=(retain_all(), full(), checkpoint(), inference()),
    )


def retain_all() -> Run:
    layers = tuple(block_layers(retain=True)) + loss_layers()
    return training_run("retain-all", None, layers, 12_480, 7_340_032)


def full() -> Run:
    return training_run("full", None, (*block_layers(), *loss_layers()), 9_216, 5_242_880)


def checkpoint() -> Run:
    """Two segments of two blocks: each keeps its input, which for the first one is the model's."""
    layers: list[Layer] = []
    for number, layer in enumerate(block_layers()):
        last_of_segment = number % 4 == 3
        layers.append(dropped(layer, keep=HIDDEN if last_of_segment else 0, recomputed=True))
        if last_of_segment:
            layers.append(segment(number // 4))
    return training_run("checkpoint", "sqrt", (*layers, *loss_layers()), 10_752, 1_703_936, recomputed=HIDDEN)


def segment(number: int) -> Layer:
    origin = f"output of relu (blocks.{2 * number - 1}.act)"
    return Layer(
        path="blocks",
        op="checkpoint",
        call=number,
        output_shape=(),
        dtype="",
        saved_bytes=0,
        shared_bytes=HIDDEN if number else 0,
        parameter_bytes=0,
        flops=0,
        seconds=None,
        recomputed=False,
        saved=(value("input 0", HIDDEN, origin, 12, 4 * number - 1),) if number else (),
    )


def inference() -> Run:
    layers = tuple(dropped(layer) for layer in (*block_layers(), *loss_layers()))
    return Run(
        mode="inference",
        policy=None,
        saved_bytes=0,
        predicted_peak_bytes=2 * HIDDEN,
        measured_peak_bytes=2 * HIDDEN + 3_072,
        rss_peak_bytes=1_048_576,
        bookkeeping_bytes=512,
        seconds=Seconds(forward=0.00194, backward=0.0, recompute=0.0),
        steps_timed=3,
        flops=sum(layer.flops for layer in layers),
        recomputed_flops=0,
        loss=2.3126,
        gradient_sha256=None,
        peak=Peak(
            phase="forward",
            path="blocks.1.fc",
            op="linear",
            saved=0,
            gradients=0,
            recomputed=0,
            workspace=0,
            outputs=2 * HIDDEN,
        ),
        layers=layers,
    )


def training_run(
    mode: str, policy: str | None, layers: tuple[Layer, ...], measured_more: int, rss: int, recomputed: int = 0
) -> Run:
    saved = sum(layer.saved_bytes for layer in layers)
    peak = Peak(
        phase="recompute" if recomputed else "backward",
        path="blocks.3.act",
        op="relu",
        saved=saved - LOGITS,
        gradients=HIDDEN + HEAD,
        recomputed=recomputed,
        workspace=HIDDEN // 4,
        outputs=0,
    )
    return Run(
        mode=mode,  # type: ignore[arg-type]
        policy=policy,
        saved_bytes=saved,
        predicted_peak_bytes=peak.total_bytes,
        measured_peak_bytes=peak.total_bytes + measured_more,
        rss_peak_bytes=rss,
        bookkeeping_bytes=18_944,
        gradient_bytes=PARAMETERS,
        seconds=Seconds(forward=0.00212, backward=0.00487, recompute=0.00181 if recomputed else 0.0),
        steps_timed=3,
        flops=sum(layer.flops for layer in layers),
        recomputed_flops=DEPTH * 2 * BATCH * WIDTH * WIDTH if recomputed else 0,
        loss=2.3126,
        gradient_sha256=SAME_BITS,
        peak=peak,
        layers=layers,
        timeline=(
            Event(0, "new", 0, HIDDEN, HIDDEN, "blocks.0.fc", "linear", "forward"),
            Event(1, "hold", 0, HIDDEN, HIDDEN, "blocks.0.act", "relu", "forward"),
            Event(2, "free", 0, HIDDEN, 0, "blocks.0.act", "relu", "backward"),
        ),
    )


def block_layers(retain: bool = False) -> list[Layer]:
    layers = []
    for block in range(DEPTH):
        a, h = 2 * block, 2 * block + 1
        inputs = (value("h", HIDDEN, f"output of relu (blocks.{block - 1}.act)", 12, h - 2),) if block else ()
        layers.append(
            Layer(
                path=f"blocks.{block}.fc",
                op="linear",
                call=0,
                output_shape=(BATCH, WIDTH),
                dtype="float32",
                saved_bytes=HIDDEN if retain else 0,
                shared_bytes=HIDDEN if block else 0,
                parameter_bytes=WEIGHT,
                flops=2 * BATCH * WIDTH * WIDTH + BATCH * WIDTH,
                seconds=0.00045,
                recomputed=False,
                saved=inputs
                + ((value("out", HIDDEN, f"output of linear (blocks.{block}.fc)", 11, a),) if retain else ()),
            )
        )
        layers.append(
            Layer(
                path=f"blocks.{block}.act",
                op="relu",
                call=0,
                output_shape=(BATCH, WIDTH),
                dtype="float32",
                saved_bytes=HIDDEN,
                shared_bytes=0,
                parameter_bytes=0,
                flops=BATCH * WIDTH,
                seconds=0.00004,
                recomputed=False,
                saved=(value("out", HIDDEN, f"output of relu (blocks.{block}.act)", 12, h),),
            )
        )
    return layers


def loss_layers() -> tuple[Layer, Layer]:
    head = Layer(
        path="head",
        op="linear",
        call=0,
        output_shape=(BATCH, CLASSES),
        dtype="float32",
        saved_bytes=0,
        shared_bytes=HIDDEN,
        parameter_bytes=HEAD,
        flops=2 * BATCH * WIDTH * CLASSES + BATCH * CLASSES,
        seconds=0.00003,
        recomputed=False,
        saved=(value("h", HIDDEN, f"output of relu (blocks.{DEPTH - 1}.act)", 12, 2 * DEPTH - 1),),
    )
    loss = Layer(
        path="",
        op="cross_entropy",
        call=0,
        output_shape=(),
        dtype="float32",
        saved_bytes=LOGITS,
        shared_bytes=0,
        parameter_bytes=0,
        flops=5 * BATCH * CLASSES,
        seconds=0.00005,
        recomputed=False,
        saved=(value("probabilities", LOGITS, "probabilities of cross_entropy", 31, 2 * DEPTH),),
    )
    return head, loss


def dropped(layer: Layer, keep: int = 0, recomputed: bool = False) -> Layer:
    """The layer as it is where nothing of it is saved, but for what a checkpoint keeps of its output."""
    return Layer(
        path=layer.path,
        op=layer.op,
        call=0,
        output_shape=layer.output_shape,
        dtype=layer.dtype,
        saved_bytes=keep,
        shared_bytes=0,
        parameter_bytes=layer.parameter_bytes,
        flops=layer.flops,
        seconds=layer.seconds,
        recomputed=recomputed,
        saved=(),
    )


def value(name: str, size: int, origin: str, line: int, buffer: int) -> SavedValue:
    return SavedValue(name=name, bytes=size, origin=origin, source=f"mlp.py:{line}", buffer=buffer)
