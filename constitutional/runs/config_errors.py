"""What is wrong with a configuration, a line a mistake: the setting, its value, what pydantic expected, what to type.

What is advised is tried first: a value is only suggested if the configuration then has no mistake at that setting.
"""

import copy
import difflib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined, to_jsonable_python

from constitutional.base.records import LABELER
from constitutional.runs.settings import GROUPS, ROLES, RunConfig, every_key, models_in

_REWORDED: Final = (
    (r"^Value error, ", ""),
    (r"^Input should be ", "it should be "),
    (r"^(Tuple|List|String) should", "it should"),
    (r" after validation, not \d+$", ""),
    (r"a valid tuple", "a list"),
    (r"a valid dictionary.*", "settings by name, such as {NAME: VALUE}"),
    (r"a valid string", "a text"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid integer(, unable.*)?", "a whole number"),
    (r"a valid number(, unable.*)?", "a number"),
    (r"^Input is not a valid path.*", "it should be a path"),
    (r"^Input tag .* found using 'kind' does not match any of the expected tags: ", "its kind should be one of "),
    (r"^Unable to extract tag using discriminator 'kind'", "it has no kind"),
)
"""Pydantic's words where they speak of Python, and ours."""
_SECRET: Final = re.compile(
    r".*api[_-]?key.*|(.*[_-])?(key|secret|password|credentials?|authorization)|((api|auth|access|bearer|hf)[_-]?)?token",
    re.IGNORECASE,
)
_NAMED_FREELY: Final = ("extra", "panel", "template", "weights", "wordings")
"""Settings under which users choose the names."""
_LENGTHS: Final = ("episodes", "epochs")
_OF_TRL: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("max_steps", "num_train_epochs", "total_episodes", "episodes"), _LENGTHS),
    "num_ppo_epochs": ("epochs",),
    "num_mini_batches": ("mini_batches",),
    "per_device_train_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("gradient_accumulation",),
    "local_rollout_forward_batch_size": ("sampling_batch_size",),
    "max_completion_length": ("max_tokens",),
    "max_new_tokens": ("max_tokens",),
    "response_length": ("max_tokens",),
    "max_prompt_length": ("max_prompt_tokens", "max_length"),
    "max_seq_length": ("max_length",),
    "lr": ("learning_rate",),
    "lr_scheduler_type": ("schedule",),
    "warmup_ratio": ("warmup",),
    "warmup_steps": ("warmup",),
    "logging_steps": ("log_every",),
    "save_steps": ("checkpoint_every",),
    "use_vllm": ("sampler",),
    "reward_funcs": ("rewards",),
    "reward_weights": ("rewards",),
    "rpo_alpha": ("loss_weights",),
}
"""Names of TRL's trainers, and the settings that do the same here: the first that the chosen option has."""
_OTHER_UNITS: Final = (
    *("max_steps", "max_prompt_length", "warmup_steps", "use_vllm", "reward_funcs", "reward_weights", "rpo_alpha"),
)
"""Those whose value cannot be typed for the setting."""
_INSTEAD: Final = {
    "prompts.train": "of files all prompts are taken, but for those of prompts.held_out=N; leave it out, or name a "
    "file with fewer prompts",
    **dict.fromkeys(("reward.packing", "algorithm.packing"), "TRL packs for SFT alone, sft.packing=true; leave it out"),
    **dict.fromkeys(
        ("sft.padding_free", "reward.padding_free", "algorithm.padding_free"),
        "TRL trains without padding where it packs, in SFT alone; leave it out, or type sft.packing=true",
    ),
}
"""What to say of a setting where another, or its option, would throw away what was typed."""


def problems(details: Sequence[ErrorDetails], values: Mapping[str, Any]) -> list[str]:
    """A line for each of the composed values that is wrong, of which pydantic may have found several mistakes."""
    by_path: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in details:
        by_path.setdefault(_path(detail, values), []).append(detail)
    return [_line(path, of_path, values) for path, of_path in by_path.items()]


def truth_values(values: Any, checked: Any, *path: str | int) -> Iterator[ErrorDetails]:  # noqa: ANN401 - JSON
    """A mistake for each `true` or `false` where a number is expected, which pydantic takes for 1 or 0."""
    if isinstance(values, bool) and isinstance(checked, int | float) and not isinstance(checked, bool):
        yield ErrorDetails(type="int_type", loc=path, msg="Input should be a number", input=values)
    elif isinstance(values, dict) and isinstance(checked, dict):
        for name in filter(checked.__contains__, values):
            yield from truth_values(values[name], checked[name], *path, str(name))
    elif isinstance(values, list) and isinstance(checked, list):
        for index, pair in enumerate(zip(values, checked, strict=False)):
            yield from truth_values(*pair, *path, index)


def _path(detail: ErrorDetails, values: Any) -> tuple[str | int, ...]:  # noqa: ANN401 - JSON of any shape
    """Where the mistake is in the values, without the members of a union that pydantic adds; a list may lack items."""
    path: list[str | int] = []
    for number, part in enumerate(detail["loc"], start=1):
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_list or (isinstance(values, dict) and part in values):
            values = values[part]
            path.append(part)
        elif detail["type"] == "missing" and number == len(detail["loc"]) and isinstance(values, dict):
            path.append(part)
    return tuple(path)


def _line(path: tuple[str | int, ...], details: Sequence[ErrorDetails], values: Mapping[str, Any]) -> str:
    key, kind, value = ".".join(map(str, path)), details[0]["type"], details[0]["input"]
    if kind == "extra_forbidden":
        return _unknown(key, value, values)
    if kind == "missing" and isinstance(_at(values, path[:-1]), dict) and path[-1] not in _at(values, path[:-1]):
        field = _field(path, values)
        placeholder = "FILE" if field and "Path" in str(field.annotation) else "VALUE"
        meaning = " ".join(field.description.split()) if field and field.description else ""
        return f"{key} has no value yet; type {_typed(path, placeholder, values)}. {meaning}".removesuffix(" ")
    expected = " or ".join(dict.fromkeys(reworded(detail) for detail in details))
    if kind == "value_error" and isinstance(value, dict):  # a rule across settings, which says itself what to type
        advised = re.sub(r"\btry (\w+=)", rf"type {key}.\1", expected) if key else expected
        return f"{key}: {advised}" if key else advised
    expected = "it is too short" if kind == "missing" else expected.replace(" or it should be ", " or ")
    if path[-1] == "api_key_env":
        return f"{key} is no name of an environment variable; {_keys_place(key)}"
    wrong = json.dumps(to_jsonable_python(_at(values, path), fallback=str), ensure_ascii=False)
    found = f"{key} {expected}" if expected.startswith("is ") else f"{key} is {wrong}; {expected}"
    return f"{found}; type {_advice(path, details, values)}"


def reworded(detail: ErrorDetails) -> str:
    """Pydantic's message in our words."""
    message = detail["msg"]
    for pattern, words in _REWORDED:
        message = re.sub(pattern, words, message)
    return message


def secret(key: str) -> str | None:
    """What to say of a setting that there is not and that is named as a key is; its value is shown nowhere."""
    group, _, name = key.rpartition(".")
    known = name == "api_key_env" or group.rpartition(".")[2] in _NAMED_FREELY
    return None if known or not _SECRET.fullmatch(name) else f"there is no setting '{key}'; {_keys_place(key)}"


def _keys_place(key: str) -> str:
    role = re.match(rf"(panel\.\w+|{'|'.join(ROLES)})\.", key)
    return (
        "a key is never typed here, as it would be written down: type export NAME=KEY in the shell, and then "
        f"{role[1] if role else LABELER}.api_key_env=NAME"
    )


def _as_in_trl(key: str, value: object, values: Mapping[str, Any]) -> str:
    """What to type for a name of TRL's, with the option that is chosen; empty for another name."""
    group, _, name = key.rpartition(".")
    kinds = GROUPS.get(group := group or "algorithm", {})
    kind = (_at(values, [group]) or {}).get("kind")
    chosen = [model for model in kinds.values() if len(kinds) == 1 or model.model_fields["kind"].default == kind]
    fields = chosen[0].model_fields if chosen else {}
    for meant in filter(fields.__contains__, _OF_TRL.get(name, ())):
        same = name not in _OTHER_UNITS and (meant not in _LENGTHS or meant in name)
        meaning = " ".join((fields[meant].description or "").split())
        return f"type {_word(f'{group}.{meant}', value if same else 'VALUE')} in its place. {meaning}"
    return ""


def _unknown(key: str, value: object, values: Mapping[str, Any]) -> str:
    """What to say of a setting that there is not, or not with the option that is chosen."""
    names = [key]
    while isinstance(value, dict) and len(value) == 1:  # as of `prompt.train=8`, where there is no `prompt`
        name, value = next(iter(value.items()))
        names.append(key := f"{key}.{name}")
    if line := next(filter(None, map(secret, names)), None):
        return line
    group, _, name = key.partition(".")
    role = re.match(r"panel\.\w+(?=\.)", key) or re.match(rf"({'|'.join(ROLES)})(?=\.)", key)
    if role:
        group, name = role[0], key[role.end() + 1 :]
    judge = group.removeprefix("panel.")
    if name == "weight" and judge != group:
        return f"there is no setting '{key}'; type {_word(f'label.weights.{judge}', value)}"
    kinds = GROUPS.get("engine" if role else group, {})
    having = [preset.removeprefix("schema_") for preset, model in kinds.items() if name in model.model_fields]
    if having and len(kinds) > 1:
        chosen = f"{group}.kind={_at(values, group.split('.')).get('kind')}"
        also = " or ".join(f"{group}={preset}" for preset in having)
        advice = _as_in_trl(key, value, values) or _INSTEAD.get(key) or f"leave it out, or type {also} as well"
        return f"{key} is a setting of {also}, and {chosen} is chosen; {advice}"
    if advice := _as_in_trl(key, value, values) or _INSTEAD.get(key, ""):
        return f"there is no setting '{key}'; {advice}"
    known = [key.replace(f"{LABELER}.", f"{group}.", 1) for key in every_key()] if role else every_key()
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    # Letters that changed places are the likelier slip: `lable` is label, not labeler.
    meant = min(near, key=lambda known: sorted(known) != sorted(key), default="")
    advice = f"did you mean {meant}? Type {_word(meant, value)}" if near else "`constitutional config` shows all"
    return f"there is no setting '{key}'; {advice}"


def _advice(path: tuple[str | int, ...], details: Sequence[ErrorDetails], values: Mapping[str, Any]) -> str:
    """What to type instead: the first of the candidates that pydantic accepts, or a word for a value."""
    for candidate in _candidates(path, details, values):
        changed = copy.deepcopy(dict(values))
        _at(changed, path[:-1])[path[-1]] = candidate
        try:
            RunConfig.model_validate(changed)
        except ValidationError as error:
            if any(_path(detail, changed)[: len(path)] == path for detail in error.errors()):
                continue
        advice = _typed(path, candidate, values)
        return advice if candidate is not None else f"{advice}, or see `constitutional config --explain {path[0]}`"
    return _typed(path, "VALUE", values)


def _candidates(
    path: tuple[str | int, ...], details: Sequence[ErrorDetails], values: Mapping[str, Any]
) -> Iterator[object]:
    """Values that may be meant: what is nearest to the one that is wrong first, the default and null last."""
    value, field = _at(values, path), _field(path, values)
    contexts = [detail.get("ctx", {}) for detail in details]
    named = [str(context.get("expected", context.get("expected_tags", ""))) for context in contexts]
    choices = re.findall(r"'([^']+)'", " ".join(named))
    if isinstance(value, str):
        yield from difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    for context in contexts:
        yield from (context[bound] for bound in ("ge", "le") if bound in context)
        if isinstance(value, list) and "max_length" in context:
            yield value[: context["max_length"]]
    if isinstance(value, str | bool | int | float):
        yield from ([value], text := value if isinstance(value, str) else json.dumps(value), [text])
    known = value if isinstance(value, dict) else {}
    yield from ({**known, "kind": tag} for tag in difflib.get_close_matches(str(known.get("kind")), choices, n=1))
    for model in models_in(field.annotation) if field else ():
        name, first = next(iter(model.model_fields.items()))
        yield {**known, name: first.default if name == "kind" else value}
    default = field.get_default(call_default_factory=True, validated_data={}) if field else PydanticUndefined
    if default is not PydanticUndefined and default is not None and len(str(default)) < 60:
        yield to_jsonable_python(default, fallback=str)
    yield from (*choices, 1, None)


def _field(path: Sequence[str | int], values: Mapping[str, Any]) -> FieldInfo | None:
    """The setting at that place; of a group of several kinds the chosen kind's."""
    field: FieldInfo | None = None
    models: list[Any] = [RunConfig]
    for depth, name in enumerate(path):
        if isinstance(name, int) or (depth == 1 and path[0] == "panel"):
            continue  # what a list or the panel holds is found by its own type
        owner = _at(values, path[:depth])
        kind = owner.get("kind") if isinstance(owner, dict) else None
        owners = [model for model in models if name in model.model_fields]
        owners.sort(key=lambda model: "kind" not in model.model_fields or model.model_fields["kind"].default != kind)
        if not owners:
            return None
        field = owners[0].model_fields[name]
        models = models_in(field.annotation)
    return field


def _at(values: Any, path: Sequence[str | int]) -> Any:  # noqa: ANN401 - JSON of any shape
    for part in path:
        values = values[part] if isinstance(part, int) or part in values else None
    return values


def _typed(path: tuple[str | int, ...], value: object, values: Mapping[str, Any]) -> str:
    """The override that gives a setting this value; a list is typed whole."""
    depth = next((depth for depth in range(1, len(path)) if isinstance(_at(values, path[:depth]), list)), len(path))
    if depth < len(path):
        whole = copy.deepcopy(_at(values, path[:depth]))
        _at(whole, path[depth:-1])[path[-1]] = value
        value = whole
    return _word(".".join(map(str, path[:depth])), value)


def _word(key: str, value: object) -> str:
    """An override as it is typed in a shell: YAML in a line, which Hydra's grammar reads."""
    flow = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False)
    word = f"{key}={flow.strip()[1:-1]}"
    return word if shlex.quote(word) == word else shlex.quote(word) if re.search(r'[$`"\\]', word) else f'"{word}"'
