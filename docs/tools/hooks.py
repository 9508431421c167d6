"""What building the documentation adds to its pages, so that all that they show is memback's own and of this version.

- A fence with ``exec="on"`` is run: Python under one namespace a page, shell commands in a folder that is emptied
  before every build. What they print stands below them. One that fails fails the build.
- ``<!-- picture: memback profile … -->`` becomes the picture that this command draws, ``<!-- report: memback profile …
  -->`` the HTML report that it writes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from memback.commands import main
from memback.engine.op import REGISTRY
from memback.plans import PLANNERS

WORK = Path("build/docs-work").resolve()
WIDTH = 90
"""Columns of what commands print."""

FENCE = re.compile(r'^```(python|console) exec="on"', re.MULTILINE)
DRAWN = re.compile(r"<!-- (picture|report): (memback .*?) -->")

_known = (dict(REGISTRY), dict(PLANNERS))
_reports: dict[str, str] = {}


def on_startup(**_: Any) -> None:
    """Let the pages' commands be those of this environment, on one thread, which a busy machine does not slow down."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def on_pre_build(**_: Any) -> None:
    """Forget what the pages of an earlier build have left."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    _reports.clear()
    for registry, known in zip((REGISTRY, PLANNERS), _known, strict=True):
        registry.clear()
        registry.update(known)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put pictures into a page, and say how its code is run."""
    name = page.file.src_uri
    folder = WORK / re.sub(r"\W", "-", name)
    folder.mkdir(exist_ok=True)
    fences = {
        "python": f'```python exec="on" source="above" result="text" session="{name}"',
        "console": f'```console exec="on" source="console" width="{WIDTH}" workdir="{folder}"',
    }
    up = "../" * page.url.count("/")
    drawn = DRAWN.sub(lambda match: _drawn(match[1], match[2], up), markdown)
    return FENCE.sub(lambda match: fences[match[1]], drawn)


def on_post_build(config: Any, **_: Any) -> None:
    """Put the reports that pages show beside them."""
    folder = Path(config.site_dir, "reports")
    folder.mkdir(exist_ok=True)
    for name, content in _reports.items():
        (folder / name).write_text(content, encoding="utf-8")


def _drawn(kind: str, command: str, up: str) -> str:
    caption = f"<figcaption><code>{command} -o {kind}.{'svg' if kind == 'picture' else 'html'}</code></figcaption>"
    if kind == "picture":
        return f'<figure class="picture" markdown="0"><div>{_written(command, ".svg").strip()}</div>{caption}</figure>'
    name = re.sub(r"\W+", "-", command.removeprefix("memback profile ")) + ".html"
    _reports[name] = _written(command, ".html")
    address = f"{up}reports/{name}"
    frame = f'<iframe src="{address}" title="A report of memback" loading="lazy"></iframe>'
    link = f'<p><a href="{address}" target="_blank">Open the report in a page of its own</a></p>'
    return f'<figure class="report" markdown="0">{frame}{caption}</figure>\n\n{link}'


def _written(command: str, suffix: str) -> str:
    target = WORK / f"drawn{suffix}"
    arguments = [*shlex.split(command)[1:], "--quiet", "--force", "-o", str(target)]
    if main(arguments) != 0:
        raise RuntimeError(f"a page's picture could not be drawn: {command}")
    return target.read_text(encoding="utf-8")
