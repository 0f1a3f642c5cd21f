"""Rows a second and memory of reading preferences: `python scripts/bench_data.py --rows 1000000`.

Writes JSON lines of three shapes (a prompt with two replies, whole transcripts, lists of messages), reads each as
`constitutional data` does, and says rows a second of processor time, beside the bare `json.loads` of the same lines,
and the most memory that the process took.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from constitutional.data.reading import read_data
from constitutional.data.sources import DataFile

TEXT: Final = "The quick brown fox jumps over the lazy dog and asks where the bread is kept. "


def pair(number: int) -> dict[str, Any]:
    """A prompt with two replies, about 500 characters."""
    return {"prompt": f"{number}: {TEXT}", "chosen": TEXT * 3, "rejected": f"No. {TEXT * 2}"}


def transcripts(number: int) -> dict[str, Any]:
    """Two whole transcripts of two turns, about 1,000 characters."""
    start = f"\n\nHuman: {number}: {TEXT}\n\nAssistant: {TEXT}\n\nHuman: {TEXT}\n\nAssistant: "
    return {"chosen": start + TEXT * 3, "rejected": f"{start}No. {TEXT * 2}"}


def messages(number: int) -> dict[str, Any]:
    """Lists of messages with scores, about 1,000 characters."""
    asked = {"role": "user", "content": f"{number}: {TEXT}"}
    replies = [{"role": "assistant", "content": text} for text in (TEXT * 3, f"No. {TEXT * 2}")]
    chosen, rejected = ([asked, reply] for reply in replies)
    scores = {"score_chosen": 8.0, "score_rejected": 6.5}
    return {"prompt": asked["content"], "prompt_id": str(number), "chosen": chosen, "rejected": rejected, **scores}


SHAPES: Final[dict[str, Callable[[int], dict[str, Any]]]] = {
    "prompt and replies": pair,
    "transcripts": transcripts,
    "messages": messages,
}


def main() -> None:
    """Measure, and print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            path = Path(folder) / "rows.jsonl"
            with path.open("w") as file:
                file.writelines(json.dumps(shape(number)) + "\n" for number in range(arguments.rows))
            begun = time.process_time()
            with path.open("rb") as lines:
                for line in lines:
                    json.loads(line)
            bare = time.process_time() - begun
            begun = time.process_time()
            reading = read_data(DataFile(path=path))
            took = time.process_time() - begun
            assert reading.classes["preference"] == arguments.rows
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rates = f"{arguments.rows / took:,.0f} rows/s, json.loads alone {arguments.rows / bare:,.0f}"
            print(f"{name}: {rates}; at most {memory:,.0f} MB")


if __name__ == "__main__":
    main()
