"""Valid files made invalid: bytes changed anywhere, and values in the place of other values."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["WRONG", "changed_bytes", "changed_values", "texts"]

WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *(2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30),
    *("", "x", "1", "[/x][red]:bomb:", "\x1b[31mred\x07\x9b2J", "\ud800", "\u202ea", "../../x", "x" * 100_000, "=1+1"),
    *([], {}, [[]], [None], {"a": {}}, [1, "x", None], [0] * 1000),
    {"\x1b[31m": 1},
)
"""What may stand where something else should."""

_TEXTS = (
    *(b"\x00", b"\x1b[31m", b"\x9b", b"\xff\xfe", b"[/x]", b"NaN", b"-", b"1e999", b"9" * 5000, b'"', b"\n", b"\r"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"(" * 500, b"true", b"null", b"'", b"#", b"=", b",", b" " * 1000),
)


def changed_bytes(data: bytes, number: int) -> bytes:
    """The ``number``-th change of some bytes; mostly small ones, and near the beginning as often as anywhere."""
    draw = random.Random(number)
    reach = draw.choice([len(data), min(len(data), 200)])
    at = draw.randrange(reach + 1) if reach else 0
    length = draw.choice([1, 1, 2, 8, 50])
    match draw.randrange(7):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + bytes([(data[at] if at < len(data) else 0) ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        case 3:
            return data[:at] + draw.choice(_TEXTS) + data[at:]
        case 4:
            return data[:at] + draw.choice(_TEXTS) + data[at + length :]
        case 5:
            return data[:at] + data[at + length :]
        case _:
            return data[:at] + data[at : at + length] * 3 + data[at + length :]


def changed_values(value: Any, number: int) -> Any:
    """A copy of JSON data with the ``number``-th change: a value exchanged, removed, added or doubled somewhere."""
    draw = random.Random(number)
    result = copy.deepcopy(value)
    places = list(_places(result))
    owner, key = draw.choice(places)
    wrong = copy.deepcopy(draw.choice(WRONG))
    change = draw.randrange(6)
    if change == 0:
        del owner[key]
    elif change == 1 and isinstance(owner, dict):
        owner[draw.choice(["more", "\x1b[31m", "x" * 100_000, ""])] = wrong
    elif change == 1:
        owner.insert(key, copy.deepcopy(owner[key]))
    else:
        owner[key] = wrong
    return result


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, member in list(items):
        yield value, key
        yield from _places(member)


def texts(number: int, seeds: tuple[str, ...]) -> str:
    """The ``number``-th text of an option: one of the seeds, changed once or twice."""
    draw = random.Random(number)
    data = draw.choice(seeds).encode()
    for turn in range(draw.choice([1, 1, 2])):
        data = changed_bytes(data, 1000 * number + turn)
    return data.decode("utf-8", "replace").replace("\x00", "")


def as_json(value: Any) -> bytes:
    """JSON, whatever the value: what Python's reader of JSON takes, and no more."""
    dump: Callable[..., str] = json.dumps
    return dump(value, ensure_ascii=True).encode()
