"""A run's configuration: composed by Hydra, checked by pydantic, frozen to JSON.

YAML holds choices only. Hydra gets the defaults of the settings models (`settings.py`) as its node `schema`, and a
preset says what it changes. Hydra reads overrides, chooses presets and merges; pydantic decides which settings exist.
After `freeze` nothing reads YAML again.
"""

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined, to_jsonable_python

from constitutional.base.errors import ConfigurationError, ConstitutionalError, InputError, UsageError, expect
from constitutional.base.shipped import shipped
from constitutional.engines.settings import SANDBOX
from constitutional.runs.config_errors import problems, truth_values
from constitutional.runs.pipeline import outline, up_to
from constitutional.runs.process import versions
from constitutional.runs.settings import GROUPS, ROLES, RunConfig

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_NAMED_IN: Final = {"constitution": "constitution.file", "model": "model.path", "prompts": "prompts.path"}
"""Where a file or a model goes that was typed as if it were a preset."""
_JUDGE: Final = re.compile(r"panel\.[A-Za-z_]\w*")
"""A judge of the panel, whose engine is a preset like a role's; one that only has settings is `local`."""
_QUOTED: Final = "\"KEY='a {b'\""


class Job(NamedTuple):
    """A run of a sweep."""

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    """The overrides in which it differs from the others; none where there is a single run."""


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that `constitutional run` would have with these overrides, such as `label.method=votes`.

    Raises:
        UsageError: an override cannot be read, or names no preset.
        ConfigurationError: there is no such setting, or a value is not allowed.
    """
    expect(overrides, Sequence, "compose", 'a list of overrides, such as ["label.method=votes"]')
    return validated(unchecked(overrides))


def unchecked(overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra composes of these overrides, in plain values; `???` stands for what has no value.

    Raises:
        UsageError: an override cannot be read, or names no preset.
        ConfigurationError: a `${…}` refers to nothing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _hydra():
        composed = _composed(overrides)
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        reason = " ".join(str(error.msg).partition("\n    full_key")[0].split())
        reference = f'{error.full_key} is "{error.child_node}", which refers to nothing ({reason})'
        raise ConfigurationError(f"{reference}; type a value in its place") from error
    assert isinstance(values, dict)
    return {str(name): values[name] for name in (*RunConfig.model_fields, *values) if name in values}


def sweep(overrides: Sequence[str], *, multirun: bool) -> list[Job]:
    """The runs that these overrides ask for: one, or with `multirun` or a sweep's preset a run for each combination.

    Raises:
        UsageError: an override cannot be read, or names no preset.
    """
    from hydra.core.override_parser.types import OverrideType

    with _hydra():
        parsed = _read(overrides)
        preset = [word for word in parsed if word.key_or_group == "sweep" and not word.is_sweep_override()]
        if preset:
            params = _composed([str(word.input_line) for word in preset], all_of_hydra=True).hydra.sweeper.params
            typed = {word.key_or_group for word in parsed if word.type == OverrideType.CHANGE}
            parsed += _read([f"{key}={values}" for key, values in (params or {}).items() if key not in typed])
        if not (multirun or preset):
            return [Job(tuple(overrides), ())]
        choices = [
            [f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()]
            if word.is_sweep_override()
            else [str(word.input_line)]
            for word in parsed
        ]
        differ = [index for index, values in enumerate(choices) if len(values) > 1]
        return [Job(job, tuple(job[index] for index in differ)) for job in itertools.product(*choices)]


@contextmanager
def _hydra() -> Iterator[None]:
    """Give Hydra the defaults of all settings and the presets, for as long as something is composed."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    store = ConfigStore.instance()
    whole = {name: value for name, value in _defaults(RunConfig).items() if name not in {*GROUPS, *ROLES}}
    for group, presets in GROUPS.items():
        for preset, model in presets.items():
            defaults = _defaults(model)
            store.store(group=group, name=preset, node=defaults)
            if preset == "schema":
                whole |= dict.fromkeys(ROLES, defaults) if group == "engine" else {group: defaults}
    store.store(name="schema", node=whole)
    Plugins.instance().register(_own_conf_plugin())
    with hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        yield


def _defaults(model: type[BaseModel]) -> dict[str, object]:
    fields = model.model_fields.items()
    values = {name: field.get_default(call_default_factory=True, validated_data={}) for name, field in fields}
    return {name: "???" if value is PydanticUndefined else to_jsonable_python(value) for name, value in values.items()}


def _own_conf_plugin() -> type:
    from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OwnConf(SearchPathPlugin):
        """Lets ./conf/label/mine.yaml be chosen by label=mine, and win over a shipped one of that name."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            own = Path.cwd() / "conf"
            if own.is_dir() and own.resolve() != shipped("conf").resolve():
                search_path.prepend("own", f"file://{own}", anchor=SearchPathQuery(provider="main"))

    return OwnConf


def _composed(overrides: Sequence[str], *, all_of_hydra: bool = False) -> Any:  # noqa: ANN401 - OmegaConf's DictConfig
    import hydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    words = _completed(_read(overrides))
    try:
        return hydra.compose("run", overrides=words, return_hydra_config=all_of_hydra)
    except MissingConfigException as error:
        raise UsageError(_no_preset_line(str(error.missing_cfg_file), list(error.options or ()))) from error
    except (HydraException, OmegaConfBaseException) as error:
        message = str(error).partition("\nConfig search path:")[0].partition("\nTo append")[0]
        raise UsageError("; ".join(filter(None, map(str.strip, message.splitlines())))) from error


def _read(overrides: Sequence[str]) -> "list[Override]":
    """The overrides, read by Hydra's parser.

    Raises:
        UsageError: some cannot be read; says all of them.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed, unreadable = [], []
    for word in overrides:
        # Hydra's grammar wants quotes around what is beyond ASCII; people type the name of a file as it is.
        quoted = re.sub(r"^([\w.@/]+)=([^\[\]{}'\",$\\]+)$", r"\1='\2'", word)
        for typed in dict.fromkeys((word, quoted)):
            with suppress(HydraException):
                parsed.append(parser.parse_override(typed))
                break
        else:
            unreadable.append(f"{word}: cannot be read; type KEY=VALUE, and quote what is no word: {_QUOTED}")
    _refuse(UsageError, unreadable)
    return parsed


def _completed(overrides: "Sequence[Override]") -> list[str]:
    """The overrides as Hydra has to be told them: a value may be new to it, and an option that is implied is named.

    Raises:
        UsageError: one cannot stand here; says all of them.
    """
    from hydra.core.override_parser.types import OverrideType

    chosen = {word.key_or_group: str(word.value()) for word in overrides if word.key_or_group in GROUPS}
    keys = {word.key_or_group for word in overrides}
    roles = {word.package or word.key_or_group for word in overrides}  # that have an engine of their own
    words, refused = [], []
    for override in overrides:
        key, line = override.key_or_group, str(override.input_line)
        group, _, name = key.partition(".")
        if problem := _refused(override):
            refused.append(problem)
        elif key == "engine" and override.package is None:
            words += [f"engine@{role}={override.value()}" for role in ROLES if role not in roles]
        elif word := _engine_of(override):
            words.append(word)
        elif name == "kind" and group in GROUPS and len(GROUPS[group]) > 1:
            preset = chosen.setdefault(group, str(override.value()))
            if re.fullmatch(rf"{re.escape(str(override.value()))}(_.*)?", preset) is None:
                refused.append(f"{line} contradicts {group}={preset}; leave one of them out")
            words.append(f"{group}={preset}")
        elif override.type == OverrideType.CHANGE and override.package is None and not _options(key):
            words.append(f"++{line}")
        else:
            words.append(line)
    judges = [match[0] for key in keys if (match := re.match(rf"{_JUDGE.pattern}(?=\.)", key))]
    words += [f"+engine@{judge}=local" for judge in dict.fromkeys(judges) if judge not in roles]
    if "prompts.path" in keys and "prompts" not in chosen:
        words.append("prompts=file")
    _refuse(UsageError, refused)
    return list(dict.fromkeys(words))


def _engine_of(override: "Override") -> str | None:
    """How Hydra is told the engine of a role, or of a judge, which its defaults lack; None for another setting."""
    role, value = override.package or override.key_or_group, override.value()
    judge = _JUDGE.fullmatch(role)
    if not isinstance(value, str) or not (judge or role in ROLES):
        return None
    return f"{'+' if judge else ''}engine@{role}={value}"


def _refused(override: "Override") -> str | None:
    """Why an override cannot stand here, and what to type."""
    line, key = str(override.input_line), override.key_or_group
    value = None if override.is_delete() or override.is_sweep_override() else override.value()
    problem = None
    if not key.strip("."):
        problem = "names no setting; type KEY=VALUE, such as seed=1"
    elif re.match(r"hydra\b", key):
        problem = "Hydra only composes the settings here, so its own cannot be changed; leave it out"
    elif override.is_sweep_override():
        problem = "names several values; type -m as well for a run of each, or [a,b] for a list"
    elif override.is_delete():
        problem = f"nothing can be taken out; leave it out, or type {key}=VALUE"
    elif re.match(r"panel\b", key) and not re.match(rf"{_JUDGE.pattern}(\.|$)", key) and not isinstance(value, dict):
        problem = "names no judge; type panel.second=PRESET, with a name of letters, digits and _"
    elif (known := _options(key)) and (known == ["schema"] or not isinstance(value, str | list)):
        names = [f"{key}.{name}" for model in GROUPS.get(key, {}).values() for name in model.model_fields]
        presets = [f"{key}={name}" for name in known if not name.startswith("schema")]
        settings = [f"{name}=VALUE" for name in names if not name.endswith(".kind")]
        problem = f"'{key}' is a group; type {' or '.join([*presets, *settings[:1]])}"
    return problem and f"{line}: {problem}"


def _options(group: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    return list(loader.get_group_options(group)) if group in loader.list_groups("") else []


def _no_preset_line(missing: str, known: Sequence[str]) -> str:
    """What to say of `label=nope`: the presets that there are, the nearest, and where a file or a model goes."""
    group, _, name = missing.partition("/")
    presets = [preset for preset in known if not preset.startswith("schema")]
    near = difflib.get_close_matches(name, presets, n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    if group in _NAMED_IN and not near and name:
        advice = f"; type {_NAMED_IN[group]}={name} for a file or a name"
    return f"there is no preset '{name}' of '{group}'; the presets are {', '.join(presets)}{advice}"


def validated(values: dict[str, Any]) -> RunConfig:
    """The composed values, checked.

    Raises:
        ConfigurationError: says every wrong value with its key and what to type; the second and later ones as notes.
    """
    values = _without_missing(values)
    try:
        config = RunConfig.model_validate(values)
        _refuse(ConfigurationError, problems([*truth_values(values, config.model_dump(mode="json"))], values))
    except ValidationError as error:
        _refuse(ConfigurationError, problems(error.errors(include_url=False), values))
        raise
    up_to(config.until, outline(config))
    return config


def _without_missing(value: Any) -> Any:  # noqa: ANN401 - settings of any shape
    if isinstance(value, dict):
        return {name: _without_missing(inner) for name, inner in value.items() if inner != "???"}
    return value


def changed(config: RunConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The values of a run's configuration with these overrides, to be checked by `validated`; presets do not apply.

    Raises:
        UsageError: an override cannot be read, or is no `KEY=VALUE`.
    """
    values = config.model_dump(mode="json")
    with _hydra():
        parsed = _read(overrides)
        _refuse(UsageError, [problem for override in parsed if (problem := _refused(override))])
    for override in parsed:
        *groups, name = override.key_or_group.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UsageError(f"{override.input_line}: '{group}' has no settings of its own; type {group}=VALUE")
        place[name] = override.value()
    return values


def _refuse(kind: type[ConstitutionalError], lines: Sequence[str]) -> None:
    """Raise an error that says the first line, and the others as notes; nothing where there is none."""
    if lines:
        error = kind(lines[0])
        for line in lines[1:]:
            error.add_note(line)
        raise error


def freeze(config: RunConfig) -> RunConfig:
    """The same with absolute paths, so that it means the same wherever it is read.

    Names that may also be paths (a model, a constitution) become absolute where such a folder or file exists.
    """
    expect(config, RunConfig, "run", 'a configuration, such as compose(["name=first"])')
    values = _absolute(config.model_dump())
    models = [values["model"], *(values[role] for role in ROLES), *values["panel"].values()]
    for settings, key in ((values["constitution"], "file"), *((model, "path") for model in models)):
        name = settings.get(key)  # a function that plays a role has none
        if name and name != SANDBOX and Path(name).expanduser().exists():  # an empty one is not the working folder
            settings[key] = str(Path(name).expanduser().resolve())
    return RunConfig.model_validate(values)


def _absolute(value: Any) -> Any:  # noqa: ANN401 - settings of any shape
    if isinstance(value, Path):
        return value.expanduser().resolve()
    if isinstance(value, dict):
        return {name: _absolute(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_absolute(inner) for inner in value)
    return value


def dump(config: RunConfig, digests: Mapping[str, str]) -> str:
    """`config.json`: the frozen configuration, digests of what it names, and the versions that it last ran on.

    The versions that made each stage stand in the manifest.
    """
    written = {"config": config.model_dump(mode="json"), "digests": dict(digests), "versions": dict(versions())}
    return json.dumps(written, indent=2, ensure_ascii=False) + "\n"


def load(path: Path) -> RunConfig:
    """The configuration in a run folder's `config.json` (or in that folder).

    Raises:
        InputError: the file is not one that `dump` wrote.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        return RunConfig.model_validate(json.loads(file.read_text(encoding="utf-8"))["config"])
    except OSError as error:
        raise InputError(file, f"cannot be read: {error.strerror}; name a run folder such as runs/first") from error
    except (ValueError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise InputError(file, f"is not the configuration of a run of this version: {problem}") from error
