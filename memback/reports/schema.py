"""The JSON Schema of a report, from the types that read it: ``python -m memback.reports.schema`` prints it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import msgspec

from memback.profiling.report import SCHEMA, Report

__all__ = ["json_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of what ``memback profile -o report.json`` writes; keys that it does not know are allowed."""
    schema = msgspec.json.schema(Report)
    for name, definition in schema["$defs"].items():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
        if name == "Report":
            definition["required"] = ["schema", *definition["required"]]
    whole = {"$schema": _DIALECT, "$id": SCHEMA, "title": "Report of memback", **schema}
    content: dict[str, Any] = json.loads(json.dumps(whole))
    return content


def main() -> None:
    """Print the schema as it is published in docs/."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
