"""JSON, fast: a batch of Atropos has megabytes of it."""

import json
from typing import Any

import orjson

__all__ = ["read_json"]


def read_json(text: bytes) -> Any:
    """The value of a JSON text.

    Python writes NaN, Infinity and whole numbers of any size into JSON, which orjson rightly refuses; they are read
    too, so that whoever checks the values can name them.

    Raises:
        ValueError: when the text is no JSON, or nested too deeply.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
