"""A run's configuration: composed by Hydra, checked by pydantic, frozen to JSON.

YAML holds choices only. Hydra gets the defaults of the settings models (`settings.py`) as its node `schema`, and a
preset says what it changes. Hydra reads overrides, chooses presets and merges; pydantic decides which settings exist.
After `freeze` nothing reads YAML again.
"""

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined, to_jsonable_python

from constitutional.base.errors import ConfigurationError, ConstitutionalError, InputError, UsageError, expect
from constitutional.base.files import at_home
from constitutional.base.shipped import shipped
from constitutional.engines.model_files import Recommended, recommended
from constitutional.engines.settings import SANDBOX, ModelSettings, VllmSettings, role_settings
from constitutional.runs.config_errors import problems, reworded, secret, truth_values
from constitutional.runs.pipeline import outline, up_to
from constitutional.runs.process import versions
from constitutional.runs.settings import GROUPS, ROLES, RunConfig, SweepSettings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from pydantic_core import ErrorDetails

_NAMED_IN: Final = {"constitution": "constitution.file", "model": "model.path", "prompts": "prompts.path"}
"""Where a file or a model goes that was typed as if it were a preset."""
_FROM: Final = re.compile(r"from=(.*)")
_JUDGE: Final = re.compile(r"panel\.[A-Za-z_]\w*")
"""A judge of the panel, whose engine is a preset like a role's; one that only has settings is `local`."""
_LAUNCHERS: Final = ("joblib", "submitit")
"""Those of Hydra's launchers that are installed as the extra `sweeps`."""
_QUOTED: Final = "\"KEY='a {b'\""


class Job(NamedTuple):
    """A run of a sweep."""

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    """What it differs in from the others, for its name: overrides as a rule; none where there is a single run."""


class Space(NamedTuple):
    """Where a search looks for the value of a setting."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()
    """The values, as they are typed; none where the space is an interval."""


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

    overrides = _of_all_roles(overrides)
    if start := source_of(overrides):
        return _over_run(start, [word for word in overrides if not _FROM.fullmatch(word)])
    with hydra_ready():
        composed = _composed(overrides)
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        reason = " ".join(str(error.msg).partition("\n    full_key")[0].split())
        reference = f'{error.full_key} is "{error.child_node}", which refers to nothing ({reason})'
        raise ConfigurationError(f"{reference}; type a value in its place") from error
    assert isinstance(values, dict)
    values.pop("sweep", None)  # which is about the runs together
    for name in GROUPS:
        if name in values:
            values[name] = _filled(name, values[name])
    for name in ROLES:
        values[name] = _filled("engine", values[name])
    values["panel"] = {name: _filled("engine", judge) for name, judge in values["panel"].items()}
    return {str(name): values[name] for name in (*RunConfig.model_fields, *values) if name in values}


def source_of(overrides: Sequence[str]) -> Path | None:
    """The run that the overrides begin with, typed as `from=runs/first`; None where there is none.

    Raises:
        UsageError: there are several, or it is no run.
    """
    folders = [match[1] for word in overrides if (match := _FROM.fullmatch(word))]
    if not folders:
        return None
    if len(folders) > 1:
        raise UsageError(f"from={folders[1]}: a run begins with one other; leave one of them out")
    folder = at_home(folders[0])
    if not (folder / "config.json").is_file():
        raise UsageError(f"from={folders[0]}: there is no run; name a run's folder, such as from=runs/first")
    return folder.resolve()


def _of_all_roles(overrides: Sequence[str]) -> list[str]:
    """The overrides with `engine.KEY=VALUE` as a setting of every role whose engine has it and that names none itself.

    Raises:
        UsageError: there is no such role.
    """
    fields = {preset.removeprefix("schema_"): model.model_fields for preset, model in GROUPS["engine"].items()}
    typed = dict(word.lstrip("+").partition("=")[::2] for word in overrides)
    made = []
    for word in overrides:
        if not (match := re.fullmatch(r"\+*engine\.((\w+)[^=]*)=(.*)", word, re.DOTALL)):
            made.append(word)
            continue
        key, first, value = match[1], match[2], match[3]
        usual = "" if "from" in typed else "local"  # of another run it is not known here
        kinds = {role: typed.get(role, typed.get(f"engine@{role}", typed.get("engine", usual))) for role in ROLES}
        having = [kind for kind, names in fields.items() if first in names]
        if having and "local" not in having and {*kinds.values()} == {"local"} and "engine" not in typed:
            raise UsageError(f"{word} is a setting of engine={' or engine='.join(having)}; type that as well")
        roles = [
            role
            for role, kind in kinds.items()
            if f"{role}.{key}" not in typed and (not having or kind not in fields or kind in having)
        ]
        if not roles:
            raise UsageError(f"{word}: every role has a {key} of its own, or an engine that has none; leave it out")
        made += [f"{role}.{key}={value}" for role in roles]
    return made


def _over_run(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of a run, with presets and then with single settings over them; beside that run, by a new name."""
    config = load(folder)
    with hydra_ready():
        parsed = [word for word in _read(overrides) if word.key_or_group != "sweep"]  # a job's, which it has chosen
        presets = [word for word in parsed if _is_preset(word)]
    keys = {word.key_or_group for word in parsed}
    if "name" not in keys:
        raise UsageError(f"from={folder}: the new run needs a name of its own; type name=NAME")
    if "experiment" in keys:
        raise UsageError(f"from={folder}: a preset of experiment replaces all settings; leave one of the two out")
    beside = _without_recommended(config).model_copy(update={"folder": folder.parent, "until": None})
    values = beside.model_dump(mode="json")
    if "folder" in keys:  # what was answered is no more asked for there than here
        values["journal"]["path"] = str(beside.journal_file)
    composed = unchecked([str(word.input_line) for word in presets]) if presets else {}  # Hydra is set up anew
    for word in presets:
        group, *name = (word.package or word.key_or_group).removesuffix(".kind").split(".")
        for key in ROLES if group == "engine" else (group,):
            if name:
                values[key] = values[key] | {name[0]: composed[key][name[0]]}
            else:
                values[key] = composed[key]
    with hydra_ready():
        return _with_values(values, [word for word in parsed if word not in presets])


def _is_preset(word: "Override") -> bool:
    key = word.key_or_group
    if not isinstance(word.value(), str):
        return False
    group = key.removesuffix(".kind")
    return bool(_options(key)) or key in ROLES or bool(_JUDGE.fullmatch(key)) or (group != key and group in GROUPS)


def sweep(overrides: Sequence[str], *, multirun: bool) -> list[Job]:
    """The runs that these overrides ask for: one, or with `multirun` or a sweep's preset a run for each combination.

    Raises:
        UsageError: an override cannot be read, or names no preset.
    """
    with hydra_ready():
        parsed = _read(overrides)
        presets = _sweep_presets(parsed)
        if not (multirun or presets):
            return [Job(tuple(overrides), ())]
        parsed = _with_params(parsed, presets)
        if endless := next((word for word in parsed if word.is_sweep_override() and word.is_interval_sweep()), None):
            raise UsageError(
                f"{endless.input_line} has no end of values; type sweep=optuna for a search, or list values"
            )
        choices = [_values(word) for word in parsed]
        differ = [index for index, values in enumerate(choices) if len(values) > 1]
        return [Job(job, tuple(job[index] for index in differ)) for job in itertools.product(*choices)]


def search_space(overrides: Sequence[str]) -> tuple[list[str], list[Space]]:
    """The overrides that all jobs of a search share, and where it looks for the values of the others.

    Raises:
        UsageError: an override cannot be read, names no preset, or is no space that a search knows.
    """
    with hydra_ready():
        parsed = _read(overrides)
        parsed = _with_params(parsed, _sweep_presets(parsed))
        swept = [word for word in parsed if word.is_sweep_override()]
        fixed = [str(word.input_line) for word in parsed if not word.is_sweep_override()]
        return fixed, [_space(word) for word in swept]


def sweep_settings(overrides: Sequence[str]) -> SweepSettings:
    """The settings of a sweep, by its preset and by overrides such as `sweep.size=3`.

    Raises:
        UsageError: an override cannot be read, or names no preset.
        ConfigurationError: there is no such setting, or a value is not allowed.
    """
    from omegaconf import OmegaConf

    with hydra_ready():
        parsed = _read(overrides)
        presets = _sweep_presets(parsed)
        own = [str(word.input_line) for word in parsed if word.key_or_group.startswith("sweep.")]
        if not (presets or own):
            return SweepSettings()
        composed = _composed([*presets, *own], all_of_hydra=True)
        values = OmegaConf.to_container(composed.get("sweep") or OmegaConf.create(), resolve=True)
    try:
        return SweepSettings.model_validate(values)
    except ValidationError as error:
        _refuse(ConfigurationError, [_sweep_problem(detail) for detail in error.errors(include_url=False)])
        raise


def _sweep_problem(detail: "ErrorDetails") -> str:
    key = ".".join(map(str, ("sweep", *detail["loc"])))
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(detail["loc"][-1]), SweepSettings.model_fields, n=1)
        advice = f"did you mean sweep.{near[0]}?" if near else f"there are {', '.join(SweepSettings.model_fields)}"
        return f"there is no setting '{key}'; {advice}"
    value = json.dumps(to_jsonable_python(detail["input"], fallback=str), ensure_ascii=False)
    return f"{key} is {value}; {reworded(detail)}; `constitutional config --explain {key}` says more"


def hydra_config(overrides: Sequence[str]) -> Any:  # noqa: ANN401 - OmegaConf's DictConfig
    """All of Hydra's configuration, for a launcher that the overrides choose; Hydra itself logs and keeps nothing.

    Raises:
        UsageError: the launcher is not installed, or has no such setting.
    """
    quiet = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null"]
    return _composed([*overrides, *quiet, "hydra.mode=MULTIRUN"], all_of_hydra=True)


def is_launchers(override: str) -> bool:
    """Whether an override chooses how a sweep's jobs are launched, such as `hydra/launcher=joblib`."""
    return re.match(r"hydra(/launcher=|\.launcher\.)", override) is not None


def _sweep_presets(parsed: "Sequence[Override]") -> list[str]:
    return [str(word.input_line) for word in parsed if word.key_or_group == "sweep" and not word.is_sweep_override()]


def _with_params(parsed: "Sequence[Override]", presets: Sequence[str]) -> "list[Override]":
    """The overrides that a sweep's jobs are made of: with what the preset sweeps, and without the sweep's settings."""
    from hydra.core.override_parser.types import OverrideType

    params = _composed(presets, all_of_hydra=True).hydra.sweeper.params if presets else {}
    typed = {word.key_or_group for word in parsed if word.type == OverrideType.CHANGE}
    own = [
        word for word in parsed if not word.key_or_group.startswith("sweep.") and not is_launchers(str(word.input_line))
    ]
    return own + _read([f"{key}={values}" for key, values in (params or {}).items() if key not in typed])


def _values(word: "Override") -> list[str]:
    if not word.is_sweep_override():
        return [str(word.input_line)]
    return [f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()]


def _space(word: "Override") -> Space:
    key = word.get_key_element()
    if not word.is_interval_sweep():
        return Space(key, choices=tuple(map(str, word.sweep_string_iterator())))
    interval: Any = word.value()
    low, high, log = float(interval.start), float(interval.end), "log" in interval.tags
    if not low < high or (log and low <= 0):
        raise UsageError(f"{word.input_line}: is no interval; type {key}=interval(LOW,HIGH), with LOW less than HIGH")
    return Space(key, low, high, log)


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Give Hydra the defaults of all settings and the presets, for as long as something is composed."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    store = ConfigStore.instance()
    whole = {name: value for name, value in _defaults(RunConfig).items() if name not in {*GROUPS, *ROLES}}
    for group, presets in GROUPS.items():
        for preset, model in presets.items():
            defaults = _defaults(model)
            # Of several options each says only which it is; `_filled` adds the other defaults, so that they do not take
            # the place of what an experiment's base says of the group.
            own = {"kind": defaults.get("kind")}
            store.store(group=group, name=preset, node=defaults if preset == "schema" else own)
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


def _filled(group: str, values: Any) -> Any:  # noqa: ANN401 - settings of any shape
    """The settings of a group with the defaults of what they do not name, where the group has several options."""
    kind = values.get("kind") if isinstance(values, dict) else None
    model = GROUPS[group].get(f"schema_{kind}")
    return values if model is None else _defaults(model) | values


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

    words = _completed(_read(overrides), sweeps=all_of_hydra)
    try:
        return hydra.compose("run", overrides=words, return_hydra_config=all_of_hydra)
    except MissingConfigException as error:
        raise UsageError(_no_preset_line(str(error.missing_cfg_file), list(error.options or ()))) from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = str(error.__cause__ or "").partition("\n    full_key")[0]
        message = f"{error}\n{cause}".partition("\nConfig search path:")[0].partition("\nTo append")[0]
        raise UsageError("; ".join(dict.fromkeys(filter(None, map(str.strip, message.splitlines()))))) from error


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
        if line := secret(word.partition("=")[0].lstrip("+~")):
            unreadable.append(line)
            continue
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


def _completed(overrides: "Sequence[Override]", *, sweeps: bool) -> list[str]:
    """The overrides as Hydra has to be told them: a value may be new to it, and an option that is implied is named.

    Args:
        overrides: as they were read.
        sweeps: whether settings of a sweep may stand among them.

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
        if problem := _refused(override, sweeps=sweeps):
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
        elif override.type == OverrideType.CHANGE and not (override.package or _options(key) or _is_hydras(key)):
            words.append(f"++{line}")
        else:
            words.append(line)
    judges = [match[0] for key in keys if (match := re.match(rf"{_JUDGE.pattern}(?=\.)", key))]
    words += [f"+engine@{judge}=local" for judge in dict.fromkeys(judges) if judge not in roles]
    if {"prompts.path", "prompts.files"} & set(keys) and "prompts" not in chosen:
        words.append("prompts=file")
    if not {"experiment", "base"} & set(keys) and any(map(_takes_a_model, overrides)):
        words.append("experiment=real")
    _refuse(UsageError, refused)
    return list(dict.fromkeys(words))


def _takes_a_model(override: "Override") -> bool:
    """Whether it names a model that is not the test-bed's, which the default experiment does not suit."""
    return override.key_or_group in ("model", "model.path") and override.value() not in (SANDBOX, "schema")


def _engine_of(override: "Override") -> str | None:
    """How Hydra is told the engine of a role, or of a judge, which its defaults lack; None for another setting."""
    role, value = override.package or override.key_or_group, override.value()
    judge = _JUDGE.fullmatch(role)
    if not isinstance(value, str) or not (judge or role in ROLES):
        return None
    return f"{'+' if judge else ''}engine@{role}={value}"


def _refused(override: "Override", *, sweeps: bool) -> str | None:
    """Why an override cannot stand here, and what to type."""
    line, key = str(override.input_line), override.key_or_group
    value = None if override.is_delete() or override.is_sweep_override() else override.value()
    problem = None
    if not key.strip("."):
        problem = "names no setting; type KEY=VALUE, such as seed=1"
    elif not sweeps and (problem := _sweeps_own(line)):
        pass
    elif override.is_sweep_override():
        problem = (
            "names several values; type -m as well for a run of each, [a,b] for a list, or quotes around a text that "
            f"holds a comma: \"{key}='a,b'\""
        )
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


def _sweeps_own(line: str) -> str | None:
    """Why an override that is about a sweep cannot stand in the configuration of a run, and what to type."""
    if is_launchers(line):
        return "launches the jobs of a sweep; type -m as well"
    if re.match(r"hydra/sweeper=optuna|hydra\.sweeper\.n_trials", line):
        return "is not how a search is asked for here; type sweep=optuna sweep.trials=20"
    if _is_hydras(line):
        return "of Hydra's own settings only those of hydra/launcher can be changed; leave it out"
    if line.startswith("sweep."):
        return "belongs to a sweep; type sweep=principles, or another preset, as well"
    return None


def _is_hydras(key: str) -> bool:
    return re.match(r"hydra\b", key) is not None


def _options(group: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    return list(loader.get_group_options(group)) if group in loader.list_groups("") else []


def _no_preset_line(missing: str, known: Sequence[str]) -> str:
    """What to say of `label=nope`: the presets that there are, the nearest, and where a file or a model goes."""
    if (name := missing.removeprefix("hydra/launcher/")) != missing:
        plugin = next((plugin for plugin in _LAUNCHERS if name.startswith(plugin)), "")
        if plugin and not any(launcher.startswith(plugin) for launcher in known):
            package = f"hydra-{plugin}-launcher"
            return (
                f"hydra/launcher={name} needs the package {package}, which is not installed; type pip install {package}"
            )
        return f"there is no launcher '{name}'; the launchers are {', '.join(known)}"
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
    with hydra_ready():
        return _with_values(config.model_dump(mode="json"), _read(overrides))


def zero_weights(values: dict[str, Any]) -> list[str]:
    """The principles that a composed configuration weighs with 0, which leaves them out; their weights are taken out.

    A run takes no weight of 0; `what-if` and `preview` do.
    """
    chosen = values["constitution"]
    weights = chosen.get("weights")
    if not isinstance(weights, dict):
        return []
    zero = [name for name, weight in weights.items() if weight == 0 and not isinstance(weight, bool)]
    chosen["weights"] = {name: weight for name, weight in weights.items() if name not in zero}
    return zero


def _with_values(values: dict[str, Any], overrides: "Sequence[Override]") -> dict[str, Any]:
    """The values with single settings over them; Hydra has to be ready."""
    _refuse(UsageError, [problem for override in overrides if (problem := _refused(override, sweeps=False))])
    for override in overrides:
        *groups, name = override.key_or_group.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UsageError(f"{override.input_line}: '{group}' has no settings of its own; type {group}=VALUE")
        if isinstance(place.get(name), dict) and isinstance(override.value(), str):
            raise UsageError(f"{override.input_line}: '{name}' has settings of its own; type {name}.SETTING=VALUE")
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
        # An empty one is not the working folder. Unlike Path's own, this takes a text of any length.
        if name and name != SANDBOX and os.path.exists(at_home(name)):  # noqa: PTH110
            settings[key] = str(at_home(name).resolve())
    return with_recommended(RunConfig.model_validate(values))


def with_recommended(config: RunConfig) -> RunConfig:
    """The same with the sampling that models recommend, in the place of null; what changes nothing stays null.

    Drafts are sampled as the model recommends that writes them, and responses and replies as the one that is trained
    does. A model on the hub recommends nothing until it is here.
    """
    changes = {}
    for stage, usual in _recommended_for(config).items():
        settings = getattr(config, stage)
        changes[stage] = settings.model_copy(
            update={name: value for name, value in usual.items() if getattr(settings, name) is None}
        )
    return config.model_copy(update=changes)


def _without_recommended(config: RunConfig) -> RunConfig:
    """The same with null in the place of what models recommend: a new run may have other models.

    Where only one of a stage's values is the recommended one, somebody chose the other to go with it, and both stay.
    """
    changes = {}
    for stage, usual in _recommended_for(config).items():
        settings = getattr(config, stage)
        if all(getattr(settings, name) == value for name, value in usual.items()):
            changes[stage] = settings.model_copy(update=dict.fromkeys(usual))
    return config.model_copy(update=changes)


def _recommended_for(config: RunConfig) -> dict[str, dict[str, float]]:
    """By stage, the sampling that its model recommends, as far as it changes anything."""
    generator = role_settings(config.generator, config.model)
    drafting = generator if isinstance(generator, ModelSettings | VllmSettings) else None
    models = {"critique_revise": drafting, "sample_pairs": config.model, "evaluate": config.model}
    found = {}
    for stage, model in models.items():
        usual = (recommended(model.path, model.revision) if model and model.path else None) or Recommended()
        found[stage] = {name: value for name, value in usual._asdict().items() if value != 1}
    return found


def _absolute(value: Any) -> Any:  # noqa: ANN401 - settings of any shape
    if isinstance(value, Path):
        return at_home(value).resolve()
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
