"""Where the folders that ship with the package are, in a checkout or in an installed wheel."""

from pathlib import Path
from typing import Final, Literal

from constitutional.base.errors import ConfigurationError

MODEL_FOLDER: Final = Path(__file__).resolve().parent.parent / "sandbox" / "model"
"""The sandbox's model."""

Folder = Literal["conf", "constitutions", "prompts"]


def shipped(folder: Folder) -> Path:
    """The shipped folder of that name: in the package's `_data/` in a wheel, beside the package in a checkout."""
    return _find(folder, Path(__file__).resolve().parent.parent)


def _find(folder: Folder, package: Path) -> Path:
    places = (package / "_data" / folder, package.parent / folder)
    for place in places:
        if place.is_dir():
            return place
    raise ConfigurationError(
        f"The folder {folder}/ is neither at {places[0]} nor at {places[1]}; install the package again"
    )
