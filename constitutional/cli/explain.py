"""What every setting means, with its type, bounds, choices and default: from the settings' own docstrings."""

import difflib
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from constitutional.base.errors import UsageError
from constitutional.runs.settings import RunConfig, SweepSettings, models_in

_TYPES: Final = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
_BOUNDS: Final = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def explained(key: str = "") -> str:
    """Every setting, or those of a group, or one by its dotted name, as text for people.

    Raises:
        UsageError: there is no such setting; names the nearest.
    """
    entries = [*_entries("", RunConfig), *_entries("sweep.", SweepSettings)]
    key = "labeler" if key == "engine" else key  # its presets are for the labeler and the critic
    chosen = [text for name, text in entries if not key or f"{name}.".startswith(f"{key}.")]
    if not chosen:
        near = difflib.get_close_matches(key, [name for name, _ in entries], n=1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else "`constitutional config --explain` lists all"
        raise UsageError(f"there is no setting '{key}'; {advice}")
    return "\n\n".join(chosen)


def _entries(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The key and the text of each of a model's settings; a heading for each group and each of its kinds."""
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        key, meaning = f"{prefix}{name}", field.description or ""
        inner = models_in(field.annotation) if key != "panel" else []  # as the labeler's
        if name == "kind":
            continue  # the heading says it
        if not inner or prefix:
            default = schemas[name].get("default", {})
            shown = default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)
            heading = key if field.is_required() else f"{key}={shown}"
            yield key, _paragraph(heading, _type(schemas[name]), meaning)
        kinds = [part.model_fields["kind"].default for part in inner if "kind" in part.model_fields]
        if len(kinds) > 1:
            yield f"{key}.kind", _paragraph(f"{key}.kind", _type({"enum": kinds}), "")
        for part in inner:
            if len(inner) > 1:
                heading = f"[{key}, kind {part.model_fields['kind'].default}]"
                yield key, _paragraph(heading, "", part.__doc__ or "")
            elif not prefix:
                yield key, _paragraph(f"[{key}]", "", meaning or part.__doc__ or "")
            yield from _entries(f"{key}.", part)


def _paragraph(heading: str, kind: str, meaning: str) -> str:
    lines = [" ".join(text.split()) for text in (kind, meaning) if text]
    indented = [textwrap.fill(line, 80, initial_indent="    ", subsequent_indent="    ") for line in lines]
    return "\n".join([textwrap.fill(heading, 80, subsequent_indent="    "), *indented])


def _type(field: Mapping[str, Any]) -> str:
    """A field's type, choices and bounds in words."""
    if choices := field.get("enum", [field["const"]] if "const" in field else []):
        return " or ".join([", ".join(map(str, choices[:-1])), str(choices[-1])] if choices[1:] else map(str, choices))
    if several := [*field.get("anyOf", ()), *field.get("oneOf", ())]:
        return " or ".join(dict.fromkeys(_type(part) for part in several))
    if "$ref" in field:
        return "settings by name"
    bounds = " and ".join(
        f"{words} {field[bound]}".removesuffix(".0") for bound, words in _BOUNDS.items() if bound in field
    )
    if field.get("type") == "array":
        parts = field.get("prefixItems") or [field.get("items", {})]
        count = f" of {len(parts)} items" if "prefixItems" in field else ""
        return f"a list{count}, each {_type(parts[0])}"
    if field.get("type") == "object":
        return f"settings by name, each {_type(field.get('additionalProperties', {}))}"
    kind = "a path" if field.get("format") == "path" else _TYPES.get(str(field.get("type")), "a text")
    return f"{kind}, {bounds}" if bounds else kind
