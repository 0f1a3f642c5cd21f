"""A run's configuration: composed by Hydra, checked by pydantic, frozen to JSON.

YAML holds choices only: the defaults of each settings model (`run_config.py`) are given to Hydra as the option `schema`
of its group, and a preset says what it changes. After `freeze` nothing reads YAML again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined, to_jsonable_python

from constitutional.base.errors import ConfigurationError, InputError, UsageError
from constitutional.base.shipped import shipped
from constitutional.runs.config_errors import (
    boolean_lines,
    no_option_line,
    no_value_line,
    other_kind_lines,
    refused_line,
    unreadable_line,
    unresolved_line,
    value_lines,
)
from constitutional.runs.folder import versions
from constitutional.runs.settings import (
    GROUPS,
    TOP,
    ConstitutionSettings,
    DpoSettings,
    PpoSettings,
    RunConfig,
)
from constitutional.stages.prompts import FilePrompts, SandboxPrompts

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "ConstitutionSettings",
    "DpoSettings",
    "FilePrompts",
    "PpoSettings",
    "RunConfig",
    "SandboxPrompts",
    "compose",
    "dump",
    "freeze",
    "hydra_errors",
    "load",
    "register",
    "unchecked",
    "validated",
]
"""The settings are part of it, so that whoever composes a configuration finds their names here."""


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that `constitutional run` would have with these overrides, such as `label.method=votes`.

    Raises:
        UsageError: an override names no setting or no option, or cannot be read.
        ConfigurationError: a value is not allowed.
    """
    import hydra

    register()
    with hydra_errors(overrides), hydra.initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        composed = hydra.compose("run", overrides=list(overrides))
    return validated(composed)


def register() -> None:
    """Give Hydra the defaults of every settings model, and the user's own `conf/` folder before ours."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    store = ConfigStore.instance()
    store.store(name="schema", node=_open({name: _default(RunConfig, name) for name in TOP}))
    for group, options in GROUPS.items():
        for option, model in options.items():
            defaults = {name: _default(model, name) for name in model.model_fields}
            store.store(group=group, name=option, node=_open(defaults))
    Plugins.instance().register(_own_conf_plugin())


def _default(model: type[BaseModel], name: str) -> object:
    field = model.model_fields[name]
    default = field.get_default(call_default_factory=True, validated_data={})
    return "???" if default is PydanticUndefined else to_jsonable_python(default)


def _open(defaults: Mapping[str, object]) -> "DictConfig":
    """The node for these defaults, in which an empty dictionary takes any key: `constitution.weights.calm=2`."""
    from omegaconf import DictConfig, OmegaConf

    node = OmegaConf.create(dict(defaults))
    for name, default in defaults.items():
        if default == {}:
            node[name] = DictConfig({}, flags={"struct": False})
    return node


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


def validated(composed: "DictConfig") -> RunConfig:
    """What Hydra composed, checked.

    Raises:
        ConfigurationError: says every wrong value with its key and what to type; the second and later ones as notes.
            Where a `kind` is not the chosen option's, it says only that.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigurationError(no_value_line(str(error.full_key))) from error
    except OmegaConfBaseException as error:  # ${…} that leads nowhere
        key, asked = str(error.full_key), unchecked(composed)
        raise ConfigurationError(unresolved_line(key, str(error.child_node), str(error.msg), asked)) from error
    assert isinstance(values, dict)
    return _checked({str(name): value for name, value in values.items()})


def unchecked(composed: "DictConfig") -> dict[str, object]:
    """What Hydra composed, as it is: `???` stands for what has no value yet."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(composed)
    assert isinstance(values, dict)
    return {name: values[name] for name in RunConfig.model_fields if name in values}


def _checked(values: dict[str, Any]) -> RunConfig:
    if lines := list(other_kind_lines(values)):  # or every setting of the chosen option would be called unknown
        raise _all_of(lines)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise _all_of(value_lines(error.errors(include_url=False), values)) from error
    if lines := list(boolean_lines(values, config.model_dump(mode="json"))):
        raise _all_of(lines)
    return config


def _all_of(lines: Sequence[str]) -> ConfigurationError:
    """An error that says the first line, and the others as notes."""
    problem = ConfigurationError(lines[0])
    for line in lines[1:]:
        problem.add_note(line)
    return problem


@contextmanager
def hydra_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise about overrides and presets into one line of ours."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OverrideParseException as error:
        raise UsageError(unreadable_line(str(error.override))) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(refused_line(str(error))) from error
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        raise UsageError(no_option_line(overrides)) from error


def freeze(config: RunConfig) -> RunConfig:
    """The same with absolute paths, so that it means the same wherever it is read."""
    values = _absolute(config.model_dump())
    for owner, key in ((values["constitution"], "file"), (values["model"], "path")):
        if owner[key] and Path(owner[key]).expanduser().exists():  # an empty one is no name of the working folder
            owner[key] = str(Path(owner[key]).expanduser().resolve())
    return RunConfig.model_validate(values)


def _absolute(value: Any) -> Any:  # noqa: ANN401 - settings of any shape
    if isinstance(value, Path):
        return value.expanduser().resolve()
    if isinstance(value, dict):
        return {name: _absolute(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_absolute(each) for each in value)
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
