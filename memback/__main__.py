"""``python -m memback``: the same as the ``memback`` command."""

from __future__ import annotations

from memback.commands import main

raise SystemExit(main())
