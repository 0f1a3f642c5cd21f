"""What goes on from a checkpoint, by its files alone."""

import json
from pathlib import Path

from constitutional.training.ppo.checkpoint import keep_lines


def test_wherever_a_kill_cut_the_last_line_the_lines_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    kept = [{"step": 1, "prompt": [{"content": "为什么"}]}, {"step": 2, "reply": "a\u2028b"}]
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept).encode()
    cut = json.dumps({"step": 3, "prompt": [{"content": "天空是蓝的"}], "n": 1}, ensure_ascii=False).encode()
    for end in range(len(cut) + 1):  # within a character, behind an inner brace, and before the end of the line
        path.write_bytes(whole + cut[:end])
        keep_lines(path, 9)
        assert path.read_bytes() == whole
    path.write_bytes(whole + cut + b"\n")
    keep_lines(path, 1)
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [1]
