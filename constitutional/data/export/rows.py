"""One preference as a row of each format. A row holds the texts as they are: nothing is cut, stripped or templated.

The columns of `about` stand in every format that allows columns of one's own. Trainers pass over them.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from constitutional.base.records import Comparison, Message, Preference, Prompt
from constitutional.data.turns import spoken
from constitutional.data.votes import argilla, label_studio
from constitutional.data.votes.items import ID_MARK, VoteItem, item_of

Row = dict[str, Any]

_SHAREGPT: Final = {"system": "system", "user": "human", "assistant": "gpt"}


def about(preference: Preference, constitution: str) -> Row:
    """Where a label comes from, and how sure it is.

    Args:
        preference: the preference.
        constitution: the constitution's digest.
    """
    return {
        "source": preference.source,
        "probability": preference.probability,
        "principles": list(preference.principles),
        "weight": preference.weight,
        "constitution": constitution,
        "comparison": preference.comparison,
        "rests_on": list(preference.rests_on),
        "split": preference.split,
        "prompt_source": preference.prompt.source,
    }


def trl(preference: Preference, constitution: str) -> Row:
    """TRL's explicit prompt with conversational messages (dataset formats of TRL 1.16).

    OpenRLHF 0.11.2 reads the same with `--data.prompt_key prompt --data.apply_chat_template`.
    """
    return {
        "prompt": _messages(preference.prompt.messages),
        "chosen": _reply(preference.chosen),
        "rejected": _reply(preference.rejected),
        **about(preference, constitution),
    }


def verl(preference: Preference, constitution: str) -> Row:
    """What verl 0.9.1 reads: `RLHFDataset` the messages in `prompt`, `RMDataset` the texts.

    `RMDataset` tokenizes texts without a chat template, so its prompt stands in `prompt_text`.
    """
    messages = preference.prompt.messages
    text = messages[0].content if len(messages) == 1 else shown(preference).conversation
    return {
        "data_source": "constitutional",
        "prompt": _messages(messages),
        "ability": "preference",
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {"split": preference.split, "comparison": preference.comparison},
        "prompt_text": text,
        "chosen": preference.chosen,
        "rejected": preference.rejected,
        **about(preference, constitution),
    }


def nemo_rl(preference: Preference, constitution: str) -> Row:
    """NeMo-RL's ranked completions, of which the lower rank is the better (`PreferenceDataset` of its main branch).

    There is no `task_name`: the data set adds that column itself, and fails where a file has it.
    """
    replies = (preference.chosen, preference.rejected)
    return {
        "context": _messages(preference.prompt.messages),
        "completions": [{"rank": rank, "completion": _reply(reply)} for rank, reply in enumerate(replies)],
        **about(preference, constitution),
    }


def llamafactory(preference: Preference, constitution: str) -> Row:
    """LlamaFactory's sharegpt form with two replies (`SharegptDatasetConverter` of 0.9.5)."""
    return {
        "conversations": [
            {"from": _SHAREGPT[message.role], "value": message.content} for message in preference.prompt.messages
        ],
        "chosen": {"from": "gpt", "value": preference.chosen},
        "rejected": {"from": "gpt", "value": preference.rejected},
        **about(preference, constitution),
    }


def axolotl(preference: Preference, constitution: str) -> Row:
    """What axolotl's `chat_template.default` reads for DPO (0.19.0)."""
    return {
        "messages": _messages(preference.prompt.messages),
        "chosen": _reply(preference.chosen)[0],
        "rejected": _reply(preference.rejected)[0],
        **about(preference, constitution),
    }


def openai(preference: Preference, _constitution: str) -> Row:
    """OpenAI's preference fine-tuning (`FineTunePreferenceRequestInput` of API 2.3.0), which has no further keys."""
    return {
        "input": {"messages": _messages(preference.prompt.messages)},
        "preferred_output": _reply(preference.chosen),
        "non_preferred_output": _reply(preference.rejected),
    }


def label_studio_task(preference: Preference, constitution: str) -> Row:
    """A task of Label Studio whose prediction is the label; the side of the chosen response is drawn.

    A result of `<Pairwise>` names the first of its objects: `validate_prediction` of label-studio-sdk 2.1.2 wants that.
    """
    item = shown(preference)
    (task,) = label_studio.tasks([item])
    if preference.probability == 0.5:
        result = {"from_name": "verdict", "to_name": "conversation", "type": "choices", "value": {"choices": ["tie"]}}
    else:
        value = {"selected": item.side_of("a")}
        result = {"from_name": "better", "to_name": "left", "type": "pairwise", "value": value}
    own = {"model_version": preference.source, "score": preference.probability}
    prediction = {**own, "result": [{"id": "label", **result}]}
    meta = about(preference, constitution) | unspoken(preference.prompt.messages, item.conversation)
    return {"data": task["data"], "meta": meta, "predictions": [prediction]}


def argilla_record(preference: Preference, constitution: str) -> Row:
    """A record whose suggestion is the label, as `Record.from_dict` of Argilla 2.8.0 reads it; the side is drawn."""
    item = shown(preference)
    (record,) = argilla.tasks([item])
    value = "tie" if preference.probability == 0.5 else item.side_of("a")
    suggestion = {"value": value, "score": preference.probability, "agent": preference.source}
    metadata = about(preference, constitution) | {"comparison": item.name}
    if messages := unspoken(preference.prompt.messages, item.conversation):
        metadata["messages"] = json.dumps(messages["messages"], ensure_ascii=False)  # Argilla takes no lists of objects
    return {**record, "metadata": metadata, "suggestions": {"better": suggestion}}


def verl_prompt(prompt: Prompt, constitution: str) -> Row:
    """A prompt as verl 0.9.1 reads it; its reward function finds the messages, as JSON, in `extra_info`."""
    messages = _messages(prompt.messages)
    return {
        "data_source": "constitutional",
        "prompt": messages,
        "ability": "preference",
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {"messages": json.dumps(messages, ensure_ascii=False), **_origin(prompt, constitution)},
    }


def openrlhf_prompt(prompt: Prompt, constitution: str) -> Row:
    """A prompt as OpenRLHF 0.11.2 reads it with `--data.input_key prompt --data.apply_chat_template`."""
    return {"prompt": _messages(prompt.messages), **_origin(prompt, constitution)}


def nemo_rl_prompt(prompt: Prompt, constitution: str) -> Row:
    """A prompt of one message as NeMo-RL's `ResponseDataset` reads it, whose answers serve rewards by rules alone."""
    return {"input": prompt.messages[0].content, "output": "", **_origin(prompt, constitution)}


def _origin(prompt: Prompt, constitution: str) -> Row:
    return {"prompt_id": prompt.id, "prompt_source": prompt.source, "constitution": constitution}


def shown(preference: Preference) -> VoteItem:
    """What people see of a preference: `a` is the chosen reply, whose side is drawn; the id is the comparison's."""
    pair = Comparison(prompt=preference.prompt, a=preference.chosen, b=preference.rejected)
    return item_of(pair, seed=0)._replace(name=ID_MARK + preference.comparison)


def unspoken(messages: Sequence[Message], conversation: str) -> Row:
    """The messages, where the text that people see does not tell them; empty where it does."""
    return {} if spoken(conversation) == tuple(messages) else {"messages": _messages(messages)}


def _messages(messages: Sequence[Message]) -> list[Row]:
    return [message.turn() for message in messages]


def _reply(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]
