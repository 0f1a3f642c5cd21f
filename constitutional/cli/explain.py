"""What every setting means, with its type, bounds, choices and default: from the settings' own docstrings."""

import difflib
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from constitutional.base.errors import UsageError
from constitutional.runs.settings import RunConfig

_TYPES: Final = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
_BOUNDS: Final = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


class _Entry(NamedTuple):
    """A setting, or a group of settings as its heading."""

    key: str
    text: str


def explained(key: str = "") -> str:
    """Every setting, or those of a group, or one by its dotted name, as text for people.

    Raises:
        UsageError: there is no such setting; names the nearest.
    """
    schema = RunConfig.model_json_schema()
    entries = list(_entries("", schema, schema["$defs"]))
    key = "labeler" if key == "engine" else key  # its presets are for the labeler and the critic
    chosen = [entry for entry in entries if not key or entry.key == key or entry.key.startswith(f"{key}.")]
    if not chosen:
        keys = dict.fromkeys(entry.key for entry in entries)
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else "`constitutional config --explain` lists all"
        raise UsageError(f"there is no setting '{key}'; {advice}")
    return "\n\n".join(entry.text for entry in chosen)


def _entries(prefix: str, schema: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[_Entry]:
    """The settings of a model of which this is the JSON schema; a heading for each group and each of its kinds."""
    for name, field in schema["properties"].items():
        key, inner = f"{prefix}{name}", list(_models_in(field, models))
        if name == "kind":
            continue  # the heading says it
        if not inner or prefix:
            value = "" if name in schema.get("required", ()) else f"={_shown(field.get('default', {}))}"
            yield _Entry(key, _paragraph(f"{key}{value}", _type(field, models), field.get("description", "")))
        kinds = [model["properties"]["kind"]["const"] for model in inner if "kind" in model["properties"]]
        if len(kinds) > 1:
            yield _Entry(f"{key}.kind", _paragraph(f"{key}.kind", _type({"enum": kinds}, models), ""))
        for model in inner:
            about = "" if prefix and len(inner) == 1 else field.get("description", model.get("description", ""))
            if len(inner) > 1:
                heading = f"[{key}, kind {model['properties']['kind']['const']}]"
                yield _Entry(key, _paragraph(heading, "", model.get("description", "")))
            elif about:
                yield _Entry(key, _paragraph(f"[{key}]", "", about))
            yield from _entries(f"{key}.", model, models)


def _shown(default: object) -> str:
    return default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)


def _paragraph(heading: str, kind: str, meaning: str) -> str:
    lines = [" ".join(text.split()) for text in (kind, meaning) if text]
    indented = [textwrap.fill(line, 80, initial_indent="    ", subsequent_indent="    ") for line in lines]
    return "\n".join([textwrap.fill(heading, 80, subsequent_indent="    "), *indented])


def _models_in(field: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The models that a field may hold, or that its list may hold."""
    if "$ref" in field:
        yield models[field["$ref"].rpartition("/")[2]]
    for part in (*field.get("anyOf", ()), *field.get("oneOf", ()), *filter(None, [field.get("items")])):
        if isinstance(part, Mapping):
            yield from _models_in(part, models)


def _type(field: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """A field's type, choices and bounds in words."""
    if choices := field.get("enum", [field["const"]] if "const" in field else []):
        return " or ".join([", ".join(map(str, choices[:-1])), str(choices[-1])] if choices[1:] else map(str, choices))
    if several := [*field.get("anyOf", ()), *field.get("oneOf", ())]:
        return " or ".join(dict.fromkeys(_type(part, models) for part in several))
    if "$ref" in field:
        return "settings by name"
    bounds = " and ".join(
        f"{words} {field[bound]}".removesuffix(".0") for bound, words in _BOUNDS.items() if bound in field
    )
    if field.get("type") == "array":
        parts = field.get("prefixItems") or [field.get("items", {})]
        count = f" of {len(parts)} items" if "prefixItems" in field else ""
        return f"a list{count}, each {_type(parts[0], models)}"
    if field.get("type") == "object":
        return f"settings by name, each {_type(field.get('additionalProperties', {}), models)}"
    kind = "a path" if field.get("format") == "path" else _TYPES.get(str(field.get("type")), "a text")
    return f"{kind}, {bounds}" if bounds else kind
