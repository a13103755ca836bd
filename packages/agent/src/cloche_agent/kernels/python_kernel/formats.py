# ruff: noqa: ANN401 - IPython is untyped
"""What a displayed object is sent as, beyond IPython's own formats: `e2b/data`, `e2b/chart` and JSON."""

from __future__ import annotations

import base64
import datetime
import enum
import math
import sys
import uuid
import warnings
from typing import Any

from IPython.core.formatters import BaseFormatter, JSONFormatter
from traitlets import ObjectName, Unicode

LARGEST_TABLE_CELLS = 1_000_000
"""Of a larger DataFrame only text and HTML are sent; its columns would not fit into a frame."""
_LARGEST_JSON_ITEMS = 1_000_000
_DEEPEST_JSON = 200


class TableFormatter(BaseFormatter):
    """pandas.DataFrame as `{column: [values]}`; other objects by their `_repr_e2b_data_`."""

    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = (dict, str)

    def __call__(self, obj: Any) -> Any:
        """The columns of a DataFrame. Never imports pandas: without it there is no DataFrame."""
        pandas = sys.modules.get("pandas")
        frame_type = getattr(pandas, "DataFrame", None)
        if frame_type is None or not isinstance(obj, frame_type):
            return super().__call__(obj)
        if obj.size > LARGEST_TABLE_CELLS:
            return None
        return {
            str(name): [_cell(value) for value in values]
            for name, values in obj.to_dict(orient="list").items()
        }


def _cell(value: Any) -> Any:
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    try:
        return value.isoformat()
    except (AttributeError, ValueError):
        return value  # what JSON does not know is sent as its str


class ChartFormatter(BaseFormatter):
    """A matplotlib figure as what it shows; other objects by their `_repr_e2b_chart_`."""

    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = (dict, str)

    def __call__(self, obj: Any) -> Any:
        """The elements of a figure, empty where they cannot be told; nothing without the package e2b-charts.

        Imports what it takes at the first figure (0.2 s), never without one.
        """
        figure_type = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
        if figure_type is None or not isinstance(obj, figure_type):
            return super().__call__(obj)
        try:
            from e2b_charts import chart_figure_to_dict
        except ImportError:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pydantic, about numpy's numbers: no concern of the cell
                chart = to_json(chart_figure_to_dict(obj))
        except Exception:  # noqa: BLE001 - a figure of any kind; its picture is shown all the same
            return {}
        return chart if isinstance(chart, dict) else {}


class ContainerFormatter(JSONFormatter):
    """Lists and dictionaries as JSON, where JSON can say them; other objects by their `_repr_json_`."""

    def __call__(self, obj: Any) -> Any:
        """`(value, metadata)` for a container, as IPython takes it."""
        if isinstance(obj, (list, dict)):
            try:
                return to_json(obj), {"expanded": True}
            except (TypeError, ValueError, RecursionError):
                return None
        return super().__call__(obj)


def to_json(value: Any) -> Any:
    """`value` in JSON's own types: keys become strings, dates ISO 8601, numpy its Python twin, as by orjson.

    Raises:
        TypeError: Something in it has no such form.
        ValueError: It is too large or too deep.
    """
    budget = [_LARGEST_JSON_ITEMS]
    return _to_json(value, 0, budget)


def _to_json(value: Any, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth > _DEEPEST_JSON:
        raise ValueError("too large")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_to_json(item, depth + 1, budget) for item in value]
    if isinstance(value, dict):
        return {_key(key): _to_json(item, depth + 1, budget) for key, item in value.items()}
    return _scalar(value, depth, budget)


def _scalar(value: Any, depth: int, budget: list[int]) -> Any:
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, enum.Enum):
        return _to_json(value.value, depth + 1, budget)
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return {name: _to_json(getattr(value, name), depth + 1, budget) for name in fields}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _to_json(value.tolist(), depth + 1, budget)
    raise TypeError(type(value).__name__)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    plain = _scalar(key, 0, [1]) if not isinstance(key, (int, float)) else key
    if isinstance(plain, (str, int, float)):
        return str(plain)
    raise TypeError(type(key).__name__)


def encode_bytes(bundle: dict[str, Any]) -> dict[str, Any]:
    """The bundle with pictures and other bytes as base64, which is how JSON carries them."""
    return {
        str(mime): base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
        for mime, value in bundle.items()
        if value is not None
    }


def add_formatters(display_formatter: Any) -> None:
    """Register these with a shell's display formatter."""
    formatters = display_formatter.formatters
    formatters["e2b/data"] = TableFormatter(parent=display_formatter)
    formatters["e2b/chart"] = ChartFormatter(parent=display_formatter)
    formatters["application/json"] = ContainerFormatter(parent=display_formatter)
