"""What is wrong with a configuration, a line a mistake: what was found, what was expected, and what to type instead."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined, to_jsonable_python

from constitutional.base.shipped import shipped
from constitutional.runs.settings import GROUPS, RunConfig, every_key, models_in

_NUMBER: Final = "a number"
_WHOLE: Final = "a whole number"
_EXPECTED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": "made of other characters (it must match {pattern})",
    "path_type": "a path",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "settings by name"),
}
"""By pydantic's name for a mistake, what should have been there."""
_LISTED: Final = re.compile(r"[.][0-9]+")
_PLACEHOLDERS: Final = {_NUMBER: "NUMBER", _WHOLE: "NUMBER", "a finite number": "NUMBER", "a path": "FILE"}


# What pydantic finds


def value_lines(details: Sequence[ErrorDetails], values: Mapping[str, Any]) -> list[str]:
    """What to say of the mistakes that pydantic found, one line for each value that is wrong.

    Args:
        details: the mistakes.
        values: all settings, as they were composed.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        by_key.setdefault(_dotted(detail, values), []).append(detail)
    # Pydantic counts every item that a list lacks, but the list is typed once.
    return list(dict.fromkeys(_value_line(key, several, values) for key, several in by_key.items()))


def _value_line(key: str, details: Sequence[ErrorDetails], values: Mapping[str, Any]) -> str:
    """`label.method is "vote", but should be 'logprobs', … or 'votes'; type label.method=logprobs`.

    Of a value that may be of several types there is a detail for each.
    """
    detail = details[0]
    listed = _LISTED.split(key, maxsplit=1)[0]  # a list is typed whole
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such setting; take it out, or see `constitutional config` for what there is"
    if detail["type"] == "missing":
        return no_value_line(key) if key == listed else _incomplete(key, listed, detail, values)
    if detail["type"].startswith("union_tag"):
        return _kind_line(key, listed, detail)
    if detail["type"] == "value_error":  # a rule of ours, which says what it found; one across settings also what to do
        own = f"{key} {message}; type {listed}=VALUE"
        return own if key and not isinstance(detail["input"], dict) else ": ".join(filter(None, (key, message)))
    wanted = [_EXPECTED.get(each["type"], message).format(**each.get("ctx", {})) for each in details]
    expected = list(dict.fromkeys(wanted))
    should = f"{', '.join(expected[:-1])} or {expected[-1]}" if len(expected) > 1 else expected[0]
    typed = _typed(key, listed, should, detail, values) if len(expected) == 1 else _assignment(key, "", values)
    return f"{key} is {_shown(detail['input'])}, but should be {should}; type {typed}"


def _kind_line(key: str, listed: str, detail: ErrorDetails) -> str:
    """What to say of settings whose `kind` is missing or unknown."""
    if detail["type"] == "union_tag_not_found" and key in GROUPS:
        first = next(iter(GROUPS[key])).removeprefix("schema_")
        return f"{key} has no kind; leave ~{key}.kind out, and choose an option, such as {key}={first}"
    if detail["type"] == "union_tag_not_found":
        return f'{key} is {_shown(detail["input"])}, but has no kind; type "{listed}=[{{kind: NAME}}]", in quotes'
    kinds = [each.strip(" '") for each in detail["ctx"]["expected_tags"].split(",")]
    first, last = ", ".join(f"'{each}'" for each in kinds[:-1]), kinds[-1]
    chosen = f"{key}={kinds[0]}" if key == listed else f'"{listed}=[{{kind: {kinds[0]}}}]", in quotes'
    return f"{key}.kind is \"{detail['ctx']['tag']}\", but should be {first} or '{last}'; type {chosen}"


def other_kind_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """What to say of each group whose `kind` is that of another option than was chosen: `algorithm.kind=ppo`.

    An option's settings are composed before all that a preset or an override adds, so those that stand first are its.

    Args:
        values: all settings, as they were composed.
    """
    for group, options in GROUPS.items():
        found = values.get(group)
        if not isinstance(found, dict) or len(options) == 1:
            continue
        by_kind = {_kind(model): f"{group}={option.removeprefix('schema_')}" for option, model in options.items()}
        typed = by_kind.get(str(found.get("kind")))
        for model in options.values():
            stands_first = set(list(found)[: len(model.model_fields)]) == model.model_fields.keys()
            if stands_first and typed and found["kind"] != _kind(model):
                chosen = f"the settings beside it are those of {by_kind[_kind(model)]}"
                yield f'{group}.kind is "{found["kind"]}", but {chosen}; type {typed}'


def no_value_line(key: str) -> str:
    """What to say of a setting that has to be given and is not, or of a group that was taken out by `~`."""
    if key in GROUPS:
        options = ", ".join(_options(key))
        instead = f", or type {key}=OPTION in its place; the options are {options}" if options else ""
        return f"{key} has no settings; leave ~{key} out{instead}"
    field = _field(key, {})
    description = f". {_flowing(field.description)}" if field and field.description else ""
    return f"{key} has no value yet; type {key}={_placeholder_of(field)}{description}"


def boolean_lines(values: object, checked: object, key: str = "") -> Iterator[str]:
    """What to say of each `true` or `false` where a number was expected, which pydantic takes for 1 or 0.

    Args:
        values: settings as they were composed.
        checked: the same as pydantic took them.
        key: the dotted name of both; empty for all settings.
    """
    if isinstance(values, bool) and isinstance(checked, int | float) and not isinstance(checked, bool):
        expected = _WHOLE if isinstance(checked, int) else _NUMBER
        yield f"{key} is {_shown(values)}, but should be {expected}; type {_assignment(key, expected, {})}"
    elif isinstance(values, dict) and isinstance(checked, dict):
        for name in filter(checked.__contains__, values):  # in the order of the settings
            yield from boolean_lines(values[name], checked[name], f"{key}.{name}" if key else str(name))
    elif isinstance(values, list) and isinstance(checked, list):
        for number, pair in enumerate(zip(values, checked, strict=False)):
            yield from boolean_lines(*pair, f"{key}.{number}")


def unresolved_line(key: str, found: object, reason: str, values: Mapping[str, Any]) -> str:
    """What to say of a setting such as `${nope}`, which refers to something that is not there.

    Args:
        key: the setting, as OmegaConf writes it: `constitution.only[0]`.
        found: what it is.
        reason: what OmegaConf says is wrong with it.
        values: all settings, as they were composed, unresolved.
    """
    key = re.sub(r"\[([0-9]+)\]", r".\1", key)
    why = " ".join(reason.partition("\n    full_key")[0].split())
    return f"{key} is {_shown(found)}, which stands for nothing ({why}); type {_assignment(key, '', values)}"


def _incomplete(key: str, listed: str, detail: ErrorDetails, values: Mapping[str, Any]) -> str:
    """What to say of a list, or of what stands in one, in which something is missing."""
    found = detail["input"]
    if isinstance(found, list):
        return f"{listed} is {_shown(found)}, which is too short; type {listed}={_list(found, _field(listed, values))}"
    return f"{key} is missing in {_shown(found)}; type {listed}=[…] with it"


def _typed(key: str, listed: str, expected: str, detail: ErrorDetails, values: Mapping[str, Any]) -> str:
    """What would be right to type for a setting that is wrong, as far as one can know."""
    found, kind = detail["input"], detail["type"]
    field = _field(key, values)
    typed = _assignment(key, expected, values)
    if key in ("critic", "labeler") and isinstance(found, str):
        typed = f"engine@{key}={found}"  # both choose among the options of one group
    elif kind == "tuple_type":
        typed = f"{key}={_list([found], field)}"
    elif kind == "too_long" and isinstance(found, list):
        typed = f"{key}=[{','.join(map(_plain, found[: detail['ctx']['max_length']]))}]"
    elif expected == "settings by name":
        example = f"{{{_first_setting(field)}}}"
        typed = _quotable(listed, example if key == listed else "[" + example + "]") + ", in quotes"
    elif kind in {"bool_parsing", "bool_type"}:
        typed = f"{key}=true or {key}=false"
    elif kind == "string_type" and isinstance(found, bool | int | float):
        text = f"'{json.dumps(found)}'"
        typed = _quotable(listed, text if key == listed else "[" + text + "]") + ", with both kinds of quotes"
    elif kind == "literal_error" and (choice := re.match(r"Input should be '([^']+)'", detail["msg"])):
        typed = f"{listed}={choice[1]}"
    return typed


def _assignment(key: str, expected: str, values: Mapping[str, Any]) -> str:
    """What to type for a setting: its default, or else a word for what is expected; a list is typed whole.

    So are settings by name that are null by default, as `sft.lora.rank=16` is refused where `sft.lora` is null.
    """
    listed = _LISTED.split(key, maxsplit=1)[0]
    placeholder = _PLACEHOLDERS.get(expected, "VALUE")
    if within := key.removeprefix(listed).split(".")[2:]:
        return _quotable(listed, f"[{{{within[-1]}: {placeholder}, …}}]") + ", in quotes"
    if key != listed:
        return f"{listed}=[{placeholder},…]"
    field = _field(key, values)
    value = _default(field) or _PLACEHOLDERS.get(expected, _placeholder_of(field))
    above, _, name = key.rpartition(".")
    owner = _field(above, values)
    if owner is not None and owner.default is None:
        return _quotable(above, f"{{{name}: {value}}}") + ", in quotes"
    return f"{key}={value}"


def _list(found: Sequence[object], field: FieldInfo | None) -> str:
    """A list as it is typed that begins with what was found: `[0.4,VALUE]` where there have to be two."""
    annotation = field.annotation if field else None
    members = [each for each in (annotation, *get_args(annotation)) if get_origin(each) is tuple]
    kinds = get_args(members[0]) if members else (Any, ...)
    if kinds[-1] is not Ellipsis:
        fitting = zip(found, kinds, strict=False)
        items = [_plain(item) if _takes(kind, item) else "VALUE" for item, kind in fitting]
        return f"[{','.join([*items, *['VALUE'] * (len(kinds) - len(items))])}]"
    if all(_takes(kinds[0], item) for item in found):
        return f"[{','.join(map(_plain, found))}]"
    return "[VALUE,…]"


def _takes(annotation: Any, value: object) -> bool:  # noqa: ANN401 - a type, as an annotation may have it
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _quotable(key: str, value: str) -> str:
    return f'"{key}={value}"'


def _field(key: str, values: Mapping[str, Any]) -> FieldInfo | None:
    """The setting of that dotted name; of a group of several kinds, of the kind that was chosen if it has it."""
    field: FieldInfo | None = None
    models: Sequence[Any] = [RunConfig]
    found: object = values
    for name in key.split("."):
        kind = found.get("kind") if isinstance(found, dict) else None
        owners = [model for model in models if name in model.model_fields]
        chosen = [model for model in owners if "kind" in model.model_fields and _kind(model) == kind]
        if not owners:
            return None
        field = (chosen or owners)[0].model_fields[name]
        models = models_in(field.annotation)
        found = found.get(name) if isinstance(found, dict) else None
    return field


def _kind(model: type[BaseModel]) -> object:
    return model.model_fields["kind"].default


def _default(field: FieldInfo | None) -> str:
    """A setting's default as it is typed; empty if it has none that can be."""
    default = None if field is None else field.get_default(call_default_factory=True, validated_data={})
    if default is None or default is PydanticUndefined or not isinstance(default, str | bool | int | float):
        return str(default) if field is not None and default.__class__.__name__.endswith("Path") else ""
    return _plain(default)


def _plain(value: object) -> str:
    """A value as it is typed in an override."""
    return value if isinstance(value, str) else json.dumps(to_jsonable_python(value, fallback=str))


def _shown(value: object) -> str:
    return json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False)


def _placeholder_of(field: FieldInfo | None) -> str:
    return "FILE" if field is not None and "Path" in str(field.annotation) else "VALUE"


def _first_setting(field: FieldInfo | None) -> str:
    """Of settings by name an example, such as `rank: 16`."""
    for model in models_in(field.annotation) if field else []:
        for name, inner in model.model_fields.items():
            if default := _default(inner):
                return f"{name}: {default}"
    return "NAME: VALUE"


def _flowing(text: str) -> str:
    """A description as one line, without the stop that ends it."""
    return " ".join(text.split()).removesuffix(".")


def _dotted(detail: ErrorDetails, values: Any) -> str:  # noqa: ANN401 - JSON of any shape
    """The key as it is typed: without what pydantic adds to say which member of a union it tried."""
    parts = []
    for part in detail["loc"]:
        in_dict = isinstance(values, dict) and part in values
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        tag = isinstance(values, dict) and values.get("kind") == part
        if in_dict or in_list:
            values = values[part]
        elif tag or detail["type"] != "missing":
            continue
        parts.append(str(part))
    return ".".join(parts)


# What Hydra refuses


def unreadable_line(word: str) -> str:
    """What to say of a word that is no override."""
    return f"{word}: cannot be read; type KEY=VALUE, and quote what is no plain word: \"KEY='a {{b'\""


def no_option_line(overrides: Sequence[str]) -> str:
    """What to say of `model=3` and `=3`: Hydra takes only names for the options of a group, and names no culprit."""
    for word in overrides:
        key, equals, value = word.partition("=")
        group = key.lstrip("+~").partition("@")[0]
        if equals and not group:
            return f"{word}: names no setting; type KEY=VALUE, such as seed=1"
        if equals and (options := _options(group)) and re.fullmatch(r"[-+.\w]+", value):
            return f"{word}: {value} is no option of '{group}'; the options are {', '.join(options)}"
        if equals and group in GROUPS:
            first = next(name for model in GROUPS[group].values() for name in model.model_fields)
            return f"{word}: '{group}' has no options; type one of its settings, as in {group}.{first}=VALUE"
    return f"{' '.join(overrides)}: an option must be a name, such as label=votes"


def _options(group: str) -> list[str]:
    """The presets of a group that are shipped, by name."""
    return sorted(path.stem for path in (shipped("conf") / group).glob("*.yaml"))


def refused_line(message: str) -> str:
    """What Hydra says of an override or a preset, in a line of ours."""
    lines = [line.strip() for line in message.partition("\nConfig search path:")[0].splitlines() if line.strip()]
    if unknown := re.match(r"Could not override '(.+)'\.?$", lines[0]):
        value = re.search(rf"use [+]{re.escape(unknown[1])}=(.*)", message)
        return _unknown_line(unknown[1], value[1] if value else "VALUE")
    if "Available options in" in message:
        found = re.sub(r"^In '.*?': Could not find", "there is no", lines[0])
        found = re.sub(r"there is no '(.+)/'$", r"\1= names no option", found)
        start = next(number for number, line in enumerate(lines) if line.startswith("Available options in"))
        options = [option for option in lines[start + 1 :] if not option.startswith("schema")]
        own = re.search(r"'constitution/(.+)'", found)
        hint = f"; a file, or the name of a shipped one, goes into constitution.file={own[1]}" if own else ""
        return f"{found}; the options are {', '.join(options)}{hint}"
    kept = [line for line in lines if not line.startswith(("See https", "To append", "full_key", "object_type"))]
    return "; ".join(kept)


def _unknown_line(key: str, value: str) -> str:
    """What to say of a key that the composed configuration does not have."""
    above, _, name = key.rpartition(".")
    if options := _options_with(above, name):
        typed = " or ".join(f"{above}={option}" for option in options)
        return f"{key} is a setting of another option than the chosen one; type {typed} as well"
    known = every_key()
    if key in known:  # settings that there are none of by default
        return f'{above} is null, so {name} in it cannot be set alone; type "{above}={{{name}: {value}}}", in quotes'
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    meant = f"did you mean {near[0]}?" if near else "`constitutional config` shows every setting"
    return f"there is no setting '{key}'; {meant}"


def _options_with(group: str, name: str) -> list[str]:
    """The options of a group of several kinds that have a setting of that name."""
    kinds = GROUPS.get(group, {})
    return [
        option.removeprefix("schema_")
        for option, model in kinds.items()
        if option != "schema" and name in model.model_fields
    ]


# What the command does not know


def unknown_option_line(word: str, value: str, options: Sequence[str], command: str) -> str:
    """What to say of an option that there is not, such as `--until label`, which is a setting.

    Args:
        word: the option as it was typed.
        value: what stands behind it; empty if nothing does.
        options: those that there are.
        command: that was given it, such as `run`.
    """
    name, _, joined = word.partition("=")
    key = name.lstrip("-").replace("-", "_")
    if near := difflib.get_close_matches(name.lstrip("-"), [each.lstrip("-") for each in options], n=1, cutoff=0.7):
        return f"there is no option '{name}'; did you mean --{near[0]}?"
    if setting := difflib.get_close_matches(key, every_key(), n=1, cutoff=0.7):
        return f"there is no option '{name}', but a setting: type {setting[0]}={joined or value or 'VALUE'}"
    elsewhere = f"and `constitutional {command} --help` lists all else"
    return f"there is no option '{name}'; settings are typed KEY=VALUE, {elsewhere}"
