"""Asks a cluster that scales by itself, in a process of its own; prints what came of it as a line of JSON."""

import json
import sys
import time
from pathlib import Path

import ray

from constitutional.base.records import Message
from constitutional.engines.base import Request, Sampling
from constitutional.engines.cluster import Cluster
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import RayClusterSettings, ScriptedSettings

FUNCTION = ScriptedSettings(function=f"{Path(__file__).parent / 'functions.py'}:answer")
WAIT_S = 60


def main(address: str) -> None:
    """Answer 60 requests, then wait until the cluster is as small as it was."""
    settings = RayClusterSettings(address=address, max_actors=3, chunk=4, idle_s=2)
    cluster = Cluster(settings, lambda line: print(line, file=sys.stderr))
    engine = cluster.engine(engine_of(FUNCTION, Models()), FUNCTION)
    requests = [Request((Message("user", f"{n} <wait 1>"),), Sampling(temperature=0)) for n in range(60)]
    answers = engine.complete(requests)
    most, end_s = len(alive()), time.monotonic() + WAIT_S
    while len(alive()) > 1 and time.monotonic() < end_s:  # while the engine is still there
        time.sleep(0.5)
    print(json.dumps({"answers": [answer.text for answer in answers], "most": most, "last": len(alive())}))
    cluster.close()


def alive() -> list[str]:
    """The nodes that the cluster has, the head among them."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


if __name__ == "__main__":
    main(sys.argv[1])
