from pathlib import Path

import pytest

from constitutional.base.errors import ModelError
from scripts.make_smollm2 import FOLDER, make


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct: the one that is made already, or a new one."""
    if FOLDER.is_dir():
        return FOLDER
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    try:
        make(folder)
    except ModelError as error:
        pytest.skip(str(error))
    return folder
