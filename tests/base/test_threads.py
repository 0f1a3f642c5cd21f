import signal
import subprocess
import sys
import time

import pytest

from constitutional.base.threads import in_thread
from tests.engines.faulty_server import chat, serving

SLOW_REWARD = """
import asyncio
from constitutional.training.awaiting import begin
async def reward():
    print("waiting", flush=True)
    await asyncio.sleep(600)
begin([reward], {})()
"""
SLOW_SERVER = """
import sys
from constitutional.engines.http import HttpEngine
from constitutional.engines.settings import HttpSettings
HttpEngine(HttpSettings(url=sys.argv[1], model="mock")).abilities
"""


def test_what_the_work_returns_or_raises_comes_back() -> None:
    assert in_thread(lambda: 7, "seven").result() == 7
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0, "none").result()


@pytest.mark.parametrize("program", [SLOW_REWARD, SLOW_SERVER])
def test_a_process_that_is_interrupted_while_it_waits_for_a_slow_server_ends(program: str) -> None:
    with serving(lambda _body, _number: chat("late", after_s=600)) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", program, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        if program == SLOW_REWARD:
            assert process.stdout.readline() == "waiting\n"
        while program == SLOW_SERVER and not server.asked and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in told
    assert process.returncode != 0
