"""The commands `chat` and `sample`: what models reply to a person who types, and to the prompts of a file."""

import argparse
import io
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import ConstitutionalError, UsageError
from constitutional.base.text import printable

if TYPE_CHECKING:
    from constitutional.runs.replies import Conversation, Repliers

_HELP: Final = """/reset            begin a new conversation
/models NAMES     who replies, such as base,policy; alone, says who is there
/system TEXT      a system message and a new conversation; without a text, none
/seed N           the seed of the replies that follow
/quit             end; so do Ctrl-D and Ctrl-C"""
_EXAMPLES: Final = "such as runs/first; or a model's folder, `sandbox`, or a name on the hub"


def add_parsers(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the commands to those of `constitutional`."""
    chat = commands.add_parser(
        "chat",
        help="talk with a run's base, SL and RL model side by side",
        description="Type a message; every model replies, in a conversation of its own. It works through a pipe:\n"
        f'echo "Hi" | constitutional chat runs/first\n\n{_HELP}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.set_defaults(run=_chat)
    sample = commands.add_parser(
        "sample",
        help="what a run's models reply to the prompts of a file, as JSON lines",
        description="A JSON line for each reply, with the prompt, the model, the seed and how it was sampled. With "
        "--out a reply is kept the moment that it is there: the same command goes on where it was stopped, and the "
        "lines are put in the order of the prompts at the end. Replies are sampled as in the run's evaluation, and "
        "prompts have its system message (prompts.system) where they have none.",
    )
    sample.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="as prompts.path: .txt or .jsonl")
    sample.add_argument("--n", type=int, default=1, metavar="K", help="replies of each model to each prompt")
    sample.add_argument("--out", type=Path, metavar="FILE.jsonl", help="where the lines go, instead of to the terminal")
    sample.set_defaults(run=_sample)
    for parser in (chat, sample):
        parser.add_argument("target", metavar="RUN", help=_EXAMPLES)
        parser.add_argument("--models", default="", metavar="NAMES", help="such as base,policy: only these")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same replies")
        parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest words")
        parser.add_argument("--max-tokens", type=int, metavar="N", help="length at which a reply is cut off")


def _repliers(arguments: argparse.Namespace) -> "Repliers":
    """The models that are chosen, sampled as the run's evaluation does or as the options say."""
    from constitutional.runs.replies import repliers

    temperature, most = arguments.temperature, arguments.max_tokens
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise UsageError(f"--temperature {temperature}: a temperature is a number from 0")
    if most is not None and most < 1:
        raise UsageError(f"--max-tokens {most}: a reply has at least 1 token")
    models = repliers(arguments.target, arguments.models)
    sampling = models.sampling
    if temperature is not None:
        sampling = sampling._replace(temperature=temperature)
    if most is not None:
        sampling = sampling._replace(max_tokens=most)
    return models._replace(sampling=sampling)


# Chat


def _chat(arguments: argparse.Namespace) -> None:
    from constitutional.runs.replies import Conversation

    models = _repliers(arguments)
    conversation = Conversation(models, arguments.seed, models.system)
    if sys.stdin.isatty():
        print(f"{', '.join(map(title, conversation.talking))}: type a message, /help for more, Ctrl-D to end")
    if models.system:
        print(f"the run's system message, which /system changes: {printable(models.system)}", file=sys.stderr)
    for line in _typed():
        if line.startswith("/"):
            try:
                if not command(conversation, line):
                    return
            except ConstitutionalError as error:
                print(printable(str(error)))
        elif line:
            answer(conversation, line)


def _typed() -> Iterator[str]:
    """What the user types, line by line, until the end of the input, or Ctrl-C where a message is waited for."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        for line in sys.stdin:
            if line := line.strip():
                print(f"> {printable(line)}", flush=True)  # so that what is piped out reads as a conversation
                yield line
        return
    with suppress(ImportError):  # on Windows there is none
        import readline  # noqa: F401 - gives input() a history and editing
    while True:
        try:
            line = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield line


def title(model: str) -> str:
    """A model as people call it: `Base`, `SL`, `RL`."""
    from constitutional.stages.report.data import MODELS

    return MODELS.get(model, model)


def answer(conversation: "Conversation", text: str) -> None:
    """Print every model's reply below its name."""
    for model in conversation.talking:
        print(f"\n{printable(title(model))}", flush=True)
        if sys.stdout.isatty():
            print("  …", end="\r", flush=True)  # a model that is asked for the first time is loaded now
        try:
            completion = conversation.reply(model, text)
        except ConstitutionalError as error:
            print(f"  (no reply: {printable(str(error))})", flush=True)
            continue
        shown = completion.text
        if completion.finish == "too_long":
            shown = "(no reply: the conversation is longer than the model can read; type /reset)"
        elif completion.failed:
            shown = f"(no reply: {completion.reason or completion.finish})"
        elif not shown.strip():
            shown = "(it only thought)" if completion.unspoken else "(an empty reply)"
        cut_off = " … (cut off)" if completion.finish == "length" else ""
        print("\n".join(_indented(printable(shown + cut_off))), flush=True)


def _indented(text: str) -> Iterator[str]:
    """The lines of a text, on a terminal wrapped between words."""
    for line in text.split("\n"):
        if sys.stdout.isatty() and line.strip():
            columns = shutil.get_terminal_size().columns
            yield textwrap.fill(line, columns, initial_indent="  ", subsequent_indent="  ")
        else:
            yield f"  {line}"


def command(conversation: "Conversation", line: str) -> bool:
    """Do what a line that begins with `/` asks for; returns whether the chat goes on.

    Raises:
        UsageError: there is no such command, or its word is wrong.
    """
    from constitutional.runs.replies import named

    name, _, words = line.partition(" ")
    words = words.strip()
    match name:
        case "/quit" | "/exit" | "/q":
            return False
        case "/reset":
            conversation.reset()
            print("a new conversation")
        case "/models":
            if words:
                conversation.talking = named(words, list(conversation.models.engines))
            there = ", ".join(conversation.models.engines)
            print(f"replying: {', '.join(conversation.talking)} (of {there})")
        case "/system":
            conversation.system = words
            conversation.reset()
            print(f"a new conversation {'with this' if words else 'without a'} system message")
        case "/seed":
            try:
                conversation.seed = int(words)
            except ValueError:
                raise UsageError(f"/seed takes a whole number, and not '{words}'; type /seed 1") from None
            print(f"seed {conversation.seed}")
        case "/help":
            print(_HELP)
        case _:
            raise UsageError(f"there is no command {name}; type /help, or a message that does not begin with /")
    return True


# Sample


def _sample(arguments: argparse.Namespace) -> None:
    from constitutional.base.files import atomic_write
    from constitutional.base.progress import Progress, counted
    from constitutional.data.prompts import load_prompts_as_they_are
    from constitutional.runs.replies import ReplySampler, SampleTask, appending, read_samples

    if arguments.n < 1:
        raise UsageError(f"--n {arguments.n}: at least 1 reply to each prompt")
    file = load_prompts_as_they_are(arguments.prompts)
    placed = list(zip(file.prompts, file.places, strict=True))
    rows = read_samples(arguments.out) if arguments.out else []
    models = _repliers(arguments)
    if arguments.n > 1 and not models.sampling.temperature:
        raise UsageError("at temperature 0 all replies to a prompt are the same; leave out --n, or raise --temperature")
    sampler = ReplySampler(models, arguments.seed)
    tasks = [
        SampleTask(model, prompt, place.number, number)
        for model in models.engines
        for prompt, place in placed
        for number in range(arguments.n)
    ]
    missing = sampler.missing(tasks, rows)
    progress = Progress()
    there = f", {len(tasks) - len(missing)} of them there already" if len(missing) < len(tasks) else ""
    repeated = f" ({len(file.repeated)} more lines repeat one)" if file.repeated else ""
    prompts, replies = counted(len(file.prompts), "prompt"), counted(len(tasks), "reply").replace("replys", "replies")
    if models.system:
        progress.say(f"prompts without a system message have the run's: {printable(models.system)}")
    progress.say(f"{prompts}{repeated}, {', '.join(models.engines)}: {replies}{there}")
    failed, lines = 0, appending(arguments.out) if arguments.out else nullcontext(partial(print, flush=True))
    with lines as write, progress.task("sample", len(missing), "replies") as task:
        for done, (of, completion) in enumerate(sampler.replies(missing), start=1):
            row = sampler.row(of, completion)
            failed += completion.failed
            write(json.dumps(row, ensure_ascii=False))
            rows.append(row)
            task.update(done, of.model)
    if arguments.out:
        places = {name: place for place, name in enumerate(models.engines)}
        rows.sort(key=lambda row: (row["line"], places.get(row["model"], len(places)), row["sample"]))
        atomic_write(arguments.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        progress.say(f"the replies are in {arguments.out}")
    if failed:
        progress.say(f"{failed} of them are empty: the model could not answer; their lines say why")
