import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from constitutional.base import cores

torch = pytest.importorskip("torch")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A machine of two cores, whose clock and load the test sets; torch has two threads."""
    state = SimpleNamespace(now_s=100.0, busy_s=1000.0, own_s=50.0)
    monkeypatch.setattr(cores, "_Measured", type("Measured", (), dict(vars(cores._Measured))))
    monkeypatch.setattr("time.monotonic", lambda: state.now_s)
    monkeypatch.setattr(cores, "_busy_s", lambda: state.busy_s)
    monkeypatch.setattr("os.times", lambda: (state.own_s, 0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield state
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("busy_s", "own_s", "threads"),
    [
        (2.0, 2.0, 2),  # all that the cores did in this second was our own work
        (2.0, 1.0, 1),  # another process used one core of the two
        (2.0, 0.0, 1),
        (0.6, 0.5, 2),
    ],
)
def test_threads_are_as_many_as_cores_that_others_do_not_use(
    machine: Any,  # noqa: ANN401
    busy_s: float,
    own_s: float,
    threads: int,
) -> None:
    with cores.shared_cores():  # the first time there is nothing to compare with
        assert torch.get_num_threads() == 2
    machine.now_s += 1.0
    machine.busy_s += busy_s
    machine.own_s += own_s
    with cores.shared_cores():
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_error(machine: Any) -> None:  # noqa: ANN401
    with cores.shared_cores():
        pass
    machine.now_s += 1.0
    machine.busy_s += 4.0
    threads = list[int]()

    def failing() -> None:
        with cores.shared_cores():
            threads.append(torch.get_num_threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert threads == [1]
    assert torch.get_num_threads() == 2


def test_where_fewer_threads_would_change_bits_they_stay(machine: Any) -> None:  # noqa: ANN401
    torch.set_num_threads(3)
    with cores.shared_cores():
        pass
    machine.now_s += 1.0
    machine.busy_s += 2.0
    with cores.shared_cores():
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_the_command_spins_briefly_unless_it_is_told_otherwise(environment: dict[str, str], expected: str) -> None:
    program = "import os; from constitutional.cli.main import main; main(['diff', 'sandbox_warm', 'sandbox_warm'])"
    program += "; print(os.environ.get('GOMP_SPINCOUNT'))"
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run(
        [sys.executable, "-c", program], env={**plain, **environment}, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == expected
