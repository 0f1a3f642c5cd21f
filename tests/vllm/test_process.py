"""The process in which vLLM answers: how it ends."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines.base import Request, Sampling
from constitutional.engines.models import LOADED, Models
from tests.vllm.test_engine import opened

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

HELLO = Request((Message("user", "Hello"),), Sampling(temperature=0, max_tokens=4))

PARENT = """
import sys
from constitutional.engines.models import Models
from tests.vllm.test_engine import opened
from tests.vllm.test_process import HELLO, processes
models = Models()
engine = opened("sandbox", models)
session = engine.session()
session.submit((0,), HELLO._replace(sampling=HELLO.sampling._replace(max_tokens=2000)))
print(*processes(models), flush=True)
session.collect()
session.submit((0,), HELLO)
import time
print("answered", flush=True)
time.sleep(600)
"""


def processes(models: Models) -> list[int]:
    return [child.process.pid for server in models._loaded.values() for child in getattr(server, "_children", [])]


def gone(pid: int, within_s: float = 20) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


@pytest.mark.parametrize(("kill", "loaded"), [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGINT, True)])
def test_it_ends_with_the_process_that_started_it(kill: signal.Signals, loaded: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        (pid,) = map(int, parent.stdout.readline().split())
        if loaded:
            assert parent.stdout.readline().strip() == "answered"
        if kill == signal.SIGINT:
            time.sleep(0.5)  # so that it sleeps: an interrupt within a destructor would be lost
            os.killpg(parent.pid, kill)  # as a terminal does
        else:
            os.kill(parent.pid, kill)
        assert parent.wait(30) != 0
    assert gone(pid)


def test_what_it_takes_is_given_back_and_it_starts_again() -> None:
    models = Models()
    engine = opened("sandbox", models)
    first = engine.complete([HELLO])
    (pid,) = processes(models)
    before = psutil.Process().memory_info().rss
    models.release()
    assert not psutil.pid_exists(pid)
    assert engine.complete([HELLO]) == first
    assert psutil.Process().memory_info().rss - before < 50e6
    models.release()


def test_a_process_that_dies_says_so_and_keeps_what_was_answered() -> None:
    models = Models()
    engine = opened("sandbox", models)
    session = engine.session()
    session.submit((0,), HELLO)
    assert len(session.collect()) == 1
    session.submit((1,), HELLO._replace(sampling=HELLO.sampling._replace(max_tokens=2000)))
    os.kill(processes(models)[0], signal.SIGKILL)
    with pytest.raises(ModelError, match="code -9"):
        session.collect()
    session.close()
    assert engine.complete([HELLO])[0].completion_tokens == 4  # in a new process
    models.release()


def test_a_model_that_vllm_does_not_take_is_told_with_its_reason(tmp_path: Path) -> None:
    from tests.tiny import tiny_model

    models = Models()
    engine = opened(str(tiny_model(tmp_path)), models)  # whose heads are too small for it
    with pytest.raises(ModelError, match=r"(?s)head.*kept"):
        engine.complete([HELLO])
    models.release()


def test_at_most_so_many_models_are_there_and_one_that_is_asked_stays() -> None:
    models = Models()
    engines = [opened("sandbox", models, max_length=length) for length in (100, 200, 300)]
    asked = engines[0].session()
    asked.submit((0,), HELLO)
    engines[1].session()
    _, idle = processes(models)
    engines[2].session()
    assert len(processes(models)) == LOADED
    assert gone(idle)
    assert len(asked.collect()) == 1
    models.release()
    assert processes(models) == []
