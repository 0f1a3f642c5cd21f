"""What plays a model on the nodes: it answers by a rule, and keeps a log of what it was asked in $TESTS_LOG."""

import hashlib
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import NamedTuple

from constitutional.engines.base import Completion, Request


class Asked(NamedTuple):
    """A line of the log."""

    pid: int
    digest: str
    """Of the whole request."""
    text: str
    """The end of its last message."""


def asked(log: Path) -> list[Asked]:
    """What was asked so far."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [Asked(*json.loads(line)) for line in lines]


def answer(request: Request) -> Completion | str:
    """`Reply 17 to: TEXT`. Where the text says `<wait 0.5>`, `<die>` or `<raise>`, that comes first."""
    text = request.messages[-1].content
    if log := os.environ.get("TESTS_LOG"):
        row = Asked(os.getpid(), hashlib.sha256(repr(request).encode()).hexdigest()[:16], text[-40:])
        with Path(log).open("a", encoding="utf-8") as file:  # a short line is written whole
            file.write(json.dumps(row) + "\n")
    if "<die>" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "<raise>" in text:
        raise ValueError("as it was told")
    wait = re.search(r"<wait ([\d.]+)>", text)
    time.sleep(float(wait[1] if wait else os.environ.get("TESTS_WAIT_S", "0")))
    if request.choices:
        length = sum(len(message.content) for message in request.messages)
        nats = [-1.0 - len(choice) - number * (length % 3) for number, choice in enumerate(request.choices)]
        return Completion("", "choices", tuple(nats))
    return f"Reply {len(text)} to: {text[-200:]}"
