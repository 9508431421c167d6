"""``memback report``."""

from __future__ import annotations

import rich_click as click

from memback.commands.options import Output, show_report, shown_report_options

__all__ = ["command"]


@click.command("report", epilog="Example: memback report report.json -o report.html")
@click.argument("stored", metavar="REPORT.json", nargs=-1, required=True)
@shown_report_options
def command(stored: tuple[str, ...], layers: bool, files: tuple[str, ...], output: Output) -> None:
    """Show a stored report, or write it in any other format. Reports of several ranks are merged, the worst first.

    The suffix of FILE is the format: .html .md .csv .txt .json .svg .png .trace.json (for Perfetto and
    chrome://tracing) .speedscope.json. Without -o the report is shown.
    """
    from memback import reports
    from memback.profiling.ranks import merge
    from memback.profiling.report import Report

    for file in files:
        reports.check(file, output.force)
    loaded = [Report.load(file) for file in stored]
    report = loaded[0] if len(loaded) == 1 else merge(loaded)
    show_report(report, not files or layers, layers, files, output)
