"""What people's preferences do to a real model: a reward model made of them, and policies of several shares of them.

    make smollm2 && python scripts/bench_people.py FILE --json people.json
    python scripts/bench_people.py FILE --parts shares -- prompts.train=80        after --, Hydra overrides

FILE holds preferences, such as hh-rlhf's; the last 300 are measured on and never trained on. The parts:

    reward    a reward model of `experiment=smollm2`, and one of the sandbox's model, from all the others: how often the
              preferred reply scores higher, beside always the longer and always the shorter
    shares    runs of `experiment=smollm2` with 0, 50 and 100% people's preferences among as many, and one of --more
              preferences, all people's: how often the policy has come to like the preferred reply better than its SL
              model does (log π − log π_SL is larger for it than for the other), by how much in nats; and what its
              replies to held-out prompts score by the reward model of people's preferences

The runs are kept in --folder, whose other runs they share what is equal with: stopped and started again, what is
finished is used again. Exits 0 whatever the figures are, 1 if a run fails, 2 if what was asked for is wrong.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from constitutional.base.errors import ConstitutionalError, InputError
from constitutional.base.files import atomic_write
from constitutional.base.records import Message, Preference, Prompt, Sample
from constitutional.base.stats import bootstrap_mean, wilson
from constitutional.base.text import table, words
from constitutional.cli.main import INTERRUPTED
from constitutional.data.comparisons import read_comparisons
from constitutional.engines.base import Request
from constitutional.engines.models import open_engine
from constitutional.engines.stories import ask, side_by_side
from constitutional.runs.compose import compose
from constitutional.runs.folder import RunStore
from constitutional.runs.runner import run
from constitutional.runs.settings import RunConfig
from constitutional.stages.mix import Settings as MixSettings
from constitutional.stages.mix import mix
from constitutional.training.reward_model import load_reward_model, score
from constitutional.training.rows import chat, token_ids

LAST: Final = 300
"""Preferences of the file that are measured on."""
SHARES: Final = (0.0, 0.5, 1.0)

Row = tuple[str, str, str, str]
"""Of the table that is printed: what, of which model, the figure, its interval."""


def divided(file: Path, folder: Path) -> tuple[Path, list[Preference], int]:
    """A file of all preferences but the last; the last ones; how many of the others there are to train on."""
    rows = read_comparisons(file).preferences
    if len(rows) <= LAST:
        raise InputError(
            file, f"holds {len(rows)} preferences; expected more than {LAST}, the last of which are held out"
        )
    held_out, asked = rows[-LAST:], {row.prompt.id for row in rows[-LAST:]}
    others = [row for row in rows[:-LAST] if row.prompt.id not in asked]
    path = folder / "people.jsonl"
    lines = [
        {
            "messages": [message.turn() for message in row.prompt.messages],
            "chosen": row.chosen,
            "rejected": row.rejected,
        }
        for row in others
    ]
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    mixed = mix([], [], [], others, MixSettings(held_out_share=0.0), 0)
    return path, held_out, mixed.counts["preferences in train"]


def share_of(right: Sequence[bool]) -> tuple[str, str]:
    """A share in words, and its interval."""
    low, high = wilson(sum(right), len(right))
    return f"{sum(right) / len(right):.1%}", f"{low:.1%} to {high:.1%} of {len(right)}"


def mean_of(values: Sequence[float]) -> tuple[str, str]:
    """A mean in words, and its bootstrap interval."""
    low, high = bootstrap_mean(values, seed=0)
    return f"{statistics.fmean(values):+.3f}", f"{low:+.3f} to {high:+.3f}"


def conversations(row: Preference) -> tuple[list[Message], list[Message]]:
    """What ends with the preferred reply, and with the other."""
    return with_reply(row.prompt, row.chosen), with_reply(row.prompt, row.rejected)


def with_reply(prompt: Prompt, reply: str) -> list[Message]:
    """A prompt and a reply to it, as a reward model reads them."""
    return [*prompt.messages, Message("assistant", reply)]


def scored(folder: Path, held_out: Sequence[Preference]) -> list[bool]:
    """Whether a reward model scores the preferred reply higher, for the pairs that it can read."""
    model, tokenizer = load_reward_model(folder / "0")
    most = model.config.max_position_embeddings
    read = [
        pair
        for pair in map(conversations, held_out)
        if max(len(token_ids(tokenizer, chat(conversation))) for conversation in pair) <= most
    ]
    marks = score(folder, [conversation for pair in read for conversation in pair])
    return [chosen.mean > rejected.mean for chosen, rejected in zip(marks[::2], marks[1::2], strict=True)]


def log_odds(folder: Path, held_out: Sequence[Preference]) -> list[float]:
    """By how many nats a model finds the preferred reply likelier than the other."""
    engine = open_engine(str(folder), dtype="float32", device="cpu")
    asked = side_by_side(
        ask(engine, Request(row.prompt.messages, choices=(row.chosen, row.rejected))) for row in held_out
    )
    return [answer.choice_logprobs[0] - answer.choice_logprobs[1] for answer in asked]


def reward_part(file: Path, held_out: Sequence[Preference], most: int, folder: Path, more: Sequence[str]) -> list[Row]:
    """Reward models of all people's preferences."""
    longer = [len(words(row.chosen)) - len(words(row.rejected)) for row in held_out]
    rows: list[Row] = [
        ("the preferred reply is the longer", "-", *share_of([lead > 0 for lead in longer])),
        ("the preferred reply is the shorter", "-", *share_of([lead < 0 for lead in longer])),
    ]
    for name, experiment in (("people_sandbox", "sandbox"), ("people", "smollm2")):
        store = run(people_only(name, file, most, folder, ["until=reward", *more], experiment))
        right = scored(store.artifact("reward_model"), held_out)
        rows.append(("the preferred reply scores higher", experiment, *share_of(right)))
    return rows


def people_only(
    name: str, file: Path, total: int, folder: Path, more: Sequence[str], experiment: str = "smollm2"
) -> RunConfig:
    """A run's configuration, all of whose preferences are people's."""
    held = ["mix.held_out_share=0"] if "until=reward" in more else []
    mixed = [f"mix.human={file}", "mix.human_ratio=1", f"mix.total={total}", *held]
    return compose([f"experiment={experiment}", f"name={name}", f"folder={folder}", *mixed, *more])


def shares_part(file: Path, held_out: Sequence[Preference], total: int, folder: Path, more: Sequence[str]) -> list[Row]:
    """Policies of several shares."""
    stores: dict[str, RunStore] = {}
    for share in SHARES:
        mixed = [f"mix.human={file}", f"mix.human_ratio={share}"]
        name = f"people_{share:.0%}".replace("%", "")
        stores[f"{share:.0%}"] = run(compose(["experiment=smollm2", f"name={name}", f"folder={folder}", *mixed, *more]))
    stores[f"100%, {total} pairs"] = run(people_only("people_more", file, total, folder, more))
    first = next(iter(stores.values()))
    before = log_odds(first.artifact("sft_model"), held_out)
    judge = folder / "people"
    rows: list[Row] = []
    for name, store in stores.items():
        after = log_odds(store.artifact("policy"), held_out)
        moved = [new - old for new, old in zip(after, before, strict=True)]
        rows.append(("the policy has come to like the preferred reply better", name, *share_of([x > 0 for x in moved])))
        rows.append(("by so many nats", name, *mean_of(moved)))
        if judge.exists():
            marks = replies_scored(RunStore.load(judge).artifact("reward_model"), store.read("samples", Sample))
            changes = [new - old for new, old in zip(marks["policy"], marks["sft_model"], strict=True)]
            rows.append(("its replies score more than those of SL", name, *mean_of(changes)))
    return rows


def replies_scored(folder: Path, samples: Sequence[Sample]) -> Mapping[str, list[float]]:
    """By model, what its replies score, in deviations."""
    made = {}
    for model in samples[0].replies:
        replies = [with_reply(sample.prompt, sample.replies[model]) for sample in samples]
        made[model] = [mark.mean for mark in score(folder, replies)]
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--parts", nargs="*", choices=["reward", "shares"], default=["reward", "shares"])
    parser.add_argument("--more", type=int, default=400, help="preferences of the last run (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure here")
    arguments, overrides = parser.parse_args(given[:end]), given[end + 1 :]
    rows: list[Row] = []
    try:
        file, held_out, most = divided(arguments.file, arguments.folder)
        if "reward" in arguments.parts:
            rows += reward_part(file, held_out, most, arguments.folder, overrides)
        if "shares" in arguments.parts:
            rows += shares_part(file, held_out, arguments.more, arguments.folder, overrides)
    except ConstitutionalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    print(table([("", "of", "figure", "95%"), *rows], numbers_from=2))
    if arguments.json:
        atomic_write(arguments.json, json.dumps(rows, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
