"""What people's preferences do to a real model: a reward model made of them, and policies of several shares of them.

    make smollm2 && python scripts/bench_people.py FILE --json people.json
    python scripts/bench_people.py FILE --parts shares -- prompts.held_out=30     after --, Hydra overrides

FILE holds preferences, such as hh-rlhf's; the last 300 are measured on, and no conversation that begins as one of
theirs is trained on. The parts:

    reward    a reward model of `experiment=smollm2`, and one of the sandbox's model, from all the others: how often the
              preferred reply scores higher, beside always the longer and always the shorter
    shares    runs of `experiment=smollm2` with 0, 50 and 100% people's preferences among as many, and one of --more
              preferences, all people's: how often the policy has come to like the preferred reply better than its SL
              model does (log π − log π_SL is larger for it than for the other), by how much in nats, and the same for
              a word, as a policy that is less sure of all it says comes to like what is shorter; and what its replies
              to held-out prompts score by the reward model of people's preferences, if the part `reward` was run

Every figure is printed, and written with --json, as soon as it is known. The runs are kept in
--folder, whose other runs they share what is equal with: stopped and started again, what is finished is used again.
Exits 0 whatever the figures are, 1 if a run fails, 2 if what was asked for is wrong.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from constitutional.base.errors import ConstitutionalError, InputError
from constitutional.base.files import atomic_write
from constitutional.base.records import Message, Preference, Prompt, Sample
from constitutional.base.stats import bootstrap_mean, wilson
from constitutional.base.text import table, words
from constitutional.cli.main import INTERRUPTED
from constitutional.data.comparisons import read_comparisons
from constitutional.data.prompts import Conversation, conversation_of, prompts_within
from constitutional.engines.base import Request
from constitutional.engines.models import open_engine
from constitutional.engines.stories import ask, side_by_side
from constitutional.runs.compose import compose
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import MANIFEST
from constitutional.runs.runner import run
from constitutional.runs.settings import RunConfig
from constitutional.stages.mix import Settings as MixSettings
from constitutional.stages.mix import mix
from constitutional.stages.summaries import RewardSummary
from constitutional.training.reward_model import load_reward_model, score
from constitutional.training.rows import chat, token_ids

LAST: Final = 300
"""Preferences of the file that are measured on."""
SHARES: Final = (0.0, 0.5, 1.0)

Row = tuple[str, str, str, str]
"""Of the table that is printed: what, of which model, the figure, its interval."""


def divided(file: Path, folder: Path) -> tuple[Path, list[Preference], int]:
    """A file of the preferences that may be trained on; the last ones; how many of the others there are to train on.

    Conversations with the same first prompt go on from each other or from one prompt, and stand on one side.
    """
    read = read_comparisons(file)
    rows = read.preferences
    if len(rows) <= LAST:
        raise InputError(
            file, f"holds {len(rows)} preferences; expected more than {LAST}, the last of which are held out"
        )
    held_out, asked = rows[-LAST:], set(map(beginning, rows[-LAST:]))
    others = [row for row in rows[:-LAST] if beginning(row) not in asked]
    unread = sum(count for kind, count in read.counts.items() if kind not in ("preference", "tie"))
    print(
        f"{len(rows)} preferences, and {unread} rows that hold none: {LAST} to measure on, {len(others)} to train on, "
        f"{len(rows) - LAST - len(others)} left out that begin as one of the former",
        flush=True,
    )
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


def beginning(row: Preference) -> Conversation:
    """The first prompt of a conversation."""
    return next(prompts_within(conversation_of(row.prompt.messages)))


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


class Likely(NamedTuple):
    """Log-probabilities of the two replies, in nats."""

    chosen: float
    rejected: float


def log_probabilities(folder: Path, held_out: Sequence[Preference]) -> list[Likely]:
    """How likely a model finds the two replies of every pair."""
    engine = open_engine(str(folder), dtype="float32", device="cpu")
    asked = side_by_side(
        ask(engine, Request(row.prompt.messages, choices=(row.chosen, row.rejected))) for row in held_out
    )
    return [Likely(*answer.choice_logprobs) for answer in asked]


def per_reply(likely: Likely, _: Preference) -> float:
    """By how many nats the preferred reply is the likelier one."""
    return likely.chosen - likely.rejected


def per_word(likely: Likely, row: Preference) -> float:
    """The same of the mean word of either reply."""
    chosen, rejected = (max(1, len(words(text))) for text in (row.chosen, row.rejected))
    return likely.chosen / chosen - likely.rejected / rejected


def reward_part(
    file: Path, held_out: Sequence[Preference], most: int, folder: Path, more: Sequence[str]
) -> Iterator[Row]:
    """Reward models of all people's preferences."""
    longer = [len(words(row.chosen)) - len(words(row.rejected)) for row in held_out]
    yield "the preferred reply is the longer", "-", *share_of([lead > 0 for lead in longer])
    yield "the preferred reply is the shorter", "-", *share_of([lead < 0 for lead in longer])
    for name, experiment in (("people_sandbox", "sandbox"), ("people", "smollm2")):
        store = run(people_only(name, file, most, folder, ["until=reward", *more], experiment))
        right = scored(store.artifact("reward_model"), held_out)
        made = store.summary("reward", RewardSummary)
        assert made is not None
        yield f"the preferred reply scores higher (trained on {made.pairs})", experiment, *share_of(right)


def people_only(
    name: str, file: Path, total: int, folder: Path, more: Sequence[str], experiment: str = "smollm2"
) -> RunConfig:
    """A run's configuration, all of whose preferences are people's."""
    held = ["mix.held_out_share=0"] if "until=reward" in more else []
    mixed = [f"mix.human={file}", "mix.human_ratio=1", f"mix.total={total}", *held]
    return compose([f"experiment={experiment}", f"name={name}", f"folder={folder}", *mixed, *more])


def shares_part(
    file: Path, held_out: Sequence[Preference], total: int, folder: Path, more: Sequence[str]
) -> Iterator[Row]:
    """Policies of several shares."""
    before: list[Likely] | None = None
    runs = {
        f"{share:.0%}": compose(
            [
                *("experiment=smollm2", f"name=people_{100 * share:.0f}", f"folder={folder}"),
                *(f"mix.human={file}", f"mix.human_ratio={share}", *more),
            ]
        )
        for share in SHARES
    }
    runs[f"100%, {total} pairs"] = people_only("people_more", file, total, folder, more)
    ahead = [len(words(row.chosen)) - len(words(row.rejected)) for row in held_out]
    yield "the preferred reply is the shorter", "-", *share_of([lead < 0 for lead in ahead])
    for name, config in runs.items():
        store = run(config)
        before = before or log_probabilities(store.artifact("sft_model"), held_out)
        after = log_probabilities(store.artifact("policy"), held_out)
        for each, per in (("", per_reply), (", a word", per_word)):
            moved = [per(new, row) - per(old, row) for new, old, row in zip(after, before, held_out, strict=True)]
            yield (
                f"the policy has come to like the preferred reply better{each}",
                name,
                *share_of([x > 0 for x in moved]),
            )
            yield f"by so many nats{each}", name, *mean_of(moved)
        if judge := people_judge(folder):
            marks = replies_scored(judge, store.read("samples", Sample))
            changes = [new - old for new, old in zip(marks["policy"], marks["sft_model"], strict=True)]
            yield "its replies score more than those of SL", name, *mean_of(changes)


def people_judge(folder: Path) -> Path | None:
    """The reward model of the part `reward`, if that came to its end."""
    run_of_reward = folder / "people"
    if not (run_of_reward / MANIFEST).is_file():
        return None
    store = RunStore.load(run_of_reward)
    return store.artifact("reward_model") if "reward_model" in store.artifacts() else None


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
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "reward": lambda: reward_part(file, held_out, most, arguments.folder, overrides),
            "shares": lambda: shares_part(file, held_out, arguments.more, arguments.folder, overrides),
        }
        for row in chain.from_iterable(part() for name, part in parts.items() if name in arguments.parts):
            print(*row, sep="  ", flush=True)
            rows.append(row)
            if arguments.json:
                atomic_write(arguments.json, json.dumps(rows, indent=1).encode())
    except ConstitutionalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    print(table([("", "of", "figure", "95%"), *rows], numbers_from=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
