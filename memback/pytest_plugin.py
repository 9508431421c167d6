"""A pytest plugin: tests that a training step stays within its memory. Installed with memback, on without a setting.

```python
@pytest.mark.limit_saved_bytes("24MiB")
@pytest.mark.limit_peak("40MiB")
def test_the_step_fits(profile_step):
    model, x, y = ...
    profile_step(model, step=lambda: ops.cross_entropy(model(mb.Tensor(x)), y))
```

Predictions are exact and the same on every machine, so a limit can be tight. A failure names the layers to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from memback.profiling.report import Report, Run

__all__ = ["profile_step"]

_LIMITS = {
    "limit_saved_bytes": "saved bytes",
    "limit_peak": "peak",
}
_BLAMED_AT_MOST = 8


def pytest_configure(config: pytest.Config) -> None:
    """Say what the markers mean."""
    for marker, what in _LIMITS.items():
        config.addinivalue_line(
            "markers", f'{marker}(size, mode="full"): the {what} of a step profiled by profile_step, at most "24MiB"'
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a limit that nothing would check, before the test runs."""
    for marker in _markers(item):
        if "profile_step" not in getattr(item, "fixturenames", ()):
            pytest.fail(f"marker {marker.name} checks what the fixture profile_step profiles: take it", pytrace=False)
        _limit(marker)


@pytest.fixture
def profile_step(request: pytest.FixtureRequest) -> Iterator[Callable[..., Report]]:
    """A function that takes what :func:`memback.profile` does, checks the test's limits, and gives the report.

    By default it is a dry run of mode ``full``, and of the modes that the limits name: nothing is allocated for the
    step, and the figures are exact. ``dry=False`` runs it for real besides.
    """
    profiled: list[Report] = []

    def run(*args: Any, dry: bool = True, **options: Any) -> Report:
        report = _profile(args, dry, {"modes": _modes(request.node), **options})
        profiled.append(report)
        for marker in _markers(request.node):
            _check(report, marker)
        return report

    yield run
    if not profiled and _markers(request.node):
        pytest.fail(
            "this test has a memory limit, but has profiled nothing: call profile_step(model, step=step)", pytrace=False
        )


def _profile(args: tuple[Any, ...], dry: bool, options: dict[str, Any]) -> Report:
    import memback

    if not dry:
        return memback.profile(*args, **options)
    with memback.dry_run():
        return memback.profile(*args, **options)


def _markers(item: pytest.Item) -> list[pytest.Mark]:
    """The limits that hold for a test; of two of a kind for the same mode, the closest one."""
    closest: dict[tuple[str, str], pytest.Mark] = {}
    for name in _LIMITS:
        for marker in item.iter_markers(name):
            closest.setdefault((name, marker.kwargs.get("mode", "full")), marker)
    return list(closest.values())


def _modes(item: pytest.Item) -> tuple[str, ...]:
    return tuple(dict.fromkeys(["full", *(marker.kwargs.get("mode", "full") for marker in _markers(item))]))


def _limit(marker: pytest.Mark) -> tuple[int, str]:
    """What a marker allows, in bytes, and for which mode."""
    from memback.errors import UsageError
    from memback.profiling.mode import MODES
    from memback.units import parse_bytes

    mode = marker.kwargs.get("mode", "full")
    if len(marker.args) != 1 or set(marker.kwargs) - {"mode"} or mode not in MODES:
        pytest.fail(f'{marker.name} is written as {marker.name}("24MiB"), or with mode= one of {MODES}', pytrace=False)
    size = marker.args[0]
    try:
        return (size if isinstance(size, int) else parse_bytes(str(size))), mode
    except UsageError as error:
        pytest.fail(f"{marker.name}: {error}", pytrace=False)


def _check(report: Report, marker: pytest.Mark) -> None:
    limit, mode = _limit(marker)
    run = next((run for run in report.runs if run.mode == mode), None)
    if run is None:
        pytest.fail(f"{marker.name} is for mode {mode}, which was not profiled", pytrace=False)
    peak = marker.name == "limit_peak"
    found = max(run.peak.total_bytes, run.measured_peak_bytes or 0) if peak else run.saved_bytes
    if found > limit:
        pytest.fail(_message(run, _LIMITS[marker.name], found, limit, _made(run, peak)), pytrace=False)


def _message(run: Run, what: str, found: int, limit: int, blamed: dict[str, int]) -> str:
    """Which limit is broken by how much, and the layers that have the most of it."""
    from memback.reports import tables
    from memback.units import format_bytes

    over = f"{format_bytes(found - limit)} more than {format_bytes(limit)}"
    where = f", at the {tables.place(run)}" if what == "peak" else ""
    worst = sorted(blamed.items(), key=lambda item: -item[1])
    rest = worst[_BLAMED_AT_MOST:]
    width = max([len(f"{size:,}") for size in blamed.values()], default=0)
    lines = [f"  {size:>{width},} B  {name}" for name, size in worst[:_BLAMED_AT_MOST]]
    lines += [f"  {sum(size for _, size in rest):>{width},} B  {len(rest)} smaller ones"] if rest else []
    return "\n".join([f"The {what} of mode {run.label}: {format_bytes(found)}, {over}{where}. To blame:", *lines])


def _made(run: Run, peak: bool) -> dict[str, int]:
    """Bytes by the layer that made them: of what is alive at the peak, or of what is saved."""
    from memback.reports.diff import alive_at_peak

    if peak:
        return alive_at_peak(run)
    sizes: dict[str, int] = {}
    for layer in run.layers:
        if layer.saved_bytes:
            name = f"{layer.path or '(top)'} {layer.op}"
            sizes[name] = sizes.get(name, 0) + layer.saved_bytes
    return sizes
