"""speedscope's format: the saved bytes of every mode by call path, module after module, op, saved value's line."""

from __future__ import annotations

from typing import Any

import msgspec

from memback.profiling.report import Layer, Report, Run

__all__ = ["render"]

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


class _Frames:
    """Every frame once; other places hold its number."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], int] = {}

    def __call__(self, name: str, file: str = "") -> int:
        return self.known.setdefault((name, file), len(self.known))

    def listed(self) -> list[dict[str, str]]:
        return [{"name": name, **({"file": file} if file else {})} for name, file in self.known]


def render(report: Report) -> bytes:
    """A profile for every mode, whose weights add up to its saved bytes. Layers that save nothing have no sample."""
    frames = _Frames()
    profiles = [_profile(run, frames) for run in report.runs]
    content = {
        "$schema": _SCHEMA,
        "name": f"{report.profile.name}: saved bytes",
        "exporter": f"memback {report.memback}",
        "activeProfileIndex": next((i for i, run in enumerate(report.runs) if run.mode == "full"), 0),
        "shared": {"frames": frames.listed()},
        "profiles": profiles,
    }
    return msgspec.json.encode(content)


def _profile(run: Run, frames: _Frames) -> dict[str, Any]:
    keeping = [layer for layer in run.layers if layer.saved_bytes]
    return {
        "type": "sampled",
        "name": f"{run.label}: {run.saved_bytes} B saved",
        "unit": "bytes",
        "startValue": 0,
        "endValue": run.saved_bytes,
        "samples": [_stack(layer, frames) for layer in keeping],
        "weights": [layer.saved_bytes for layer in keeping],
    }


def _stack(layer: Layer, frames: _Frames) -> list[int]:
    """The modules from the outermost inwards, each by its whole path, then the op."""
    parts = layer.path.split(".") if layer.path else []
    paths = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    sources = {value.source for value in layer.saved if layer.path and f"({layer.path})" in value.origin}
    source = sources.pop() if len(sources) == 1 else ""
    return [*map(frames, paths), frames(f"{layer.op} {layer.call}" if layer.call else layer.op, source)]
