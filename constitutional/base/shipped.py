"""Where the folders that ship with the package are, in a checkout or in an installed wheel."""

from pathlib import Path
from typing import Final, Literal

from constitutional.base.errors import ConfigurationError

_PACKAGE: Final = Path(__file__).resolve().parent.parent
MODEL_FOLDER: Final = _PACKAGE / "sandbox" / "model"
"""The sandbox's model."""

Folder = Literal["conf", "constitutions", "prompts"]


def shipped(folder: Folder, package: Path = _PACKAGE) -> Path:
    """The shipped folder of that name: in the package's `_data/` in a wheel, beside the package in a checkout."""
    places = (package / "_data" / folder, package.parent / folder)
    if place := next(filter(Path.is_dir, places), None):
        return place
    expected = f"neither at {places[0]} nor at {places[1]}"
    raise ConfigurationError(f"The folder {folder}/ is {expected}; install the package again")
