"""What a run is told of the models that play its roles: one class of settings for each kind of engine.

A role's settings may leave out what is as the trained model has it; `role_settings` fills that in.
"""

import os
import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from constitutional.base.errors import ConfigurationError
from constitutional.base.frozen import TECHNICAL, Frozen
from constitutional.base.user_function import resolved

SANDBOX: Final = "sandbox"
"""The name of the test-bed's model, which ships with the package."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ArgumentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ModelSettings(BaseModel):
    """The model that is trained, and that answers in every role that names no other."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    path: str = SANDBOX
    """`sandbox`, a folder with a transformers causal model and a chat template, or a name on the Hugging Face hub."""
    revision: str | None = None
    """A branch, a tag or a commit of a model on the hub; null takes its main branch as it is. A commit pins it."""
    dtype: Dtype = "auto"
    """Number format of the weights while the model answers; `auto` is bfloat16 on a GPU, float16 on one that
    does not compute in bfloat16 (float32 for kinds of models that float16 is too small for, such as Gemma 2 and 3), and
    float32 on a CPU. Training keeps weights that it changes in float32."""
    device: Annotated[str, TECHNICAL] = ""
    """Where the model answers, such as `cuda:0` or `cpu`; empty takes a GPU if there is one. Training, and the
    measurement of how far a model has moved, take the GPUs that CUDA_VISIBLE_DEVICES leaves, or else the CPU."""
    batch_size: Annotated[int | None, Field(ge=1), TECHNICAL] = None
    """Most requests that are answered at the same time; null leaves that to how much memory the device has. It is
    halved where memory runs out. Training has batch sizes of its own."""
    pad_token: str | None = None
    """One of the tokenizer's tokens, to pad with, for a tokenizer that names none; it must occur in no text."""
    template: dict[ArgumentName, bool | int | float | str] = Field(default_factory=dict)
    """Arguments of the chat template, such as {enable_thinking: false}. A template that writes today's date is told
    26 July 2024; give it another through the argument that it reads, such as {date_string: "1 May 2026"}."""

    def __hash__(self) -> int:
        """A hash of all settings; a mapping has none of its own."""
        return hash(self.model_dump_json())


class LocalSettings(BaseModel):
    """A transformers model in this process; a setting that is null is that of the model that is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    kind: Literal["local"] = "local"
    path: str | None = None
    """As `model.path`."""
    revision: str | None = None
    """As `model.revision`, which does not apply to a model of another path."""
    dtype: Dtype | None = None
    """As `model.dtype`."""
    device: Annotated[str | None, TECHNICAL] = None
    """As `model.device`."""
    batch_size: Annotated[int | None, Field(ge=1), TECHNICAL] = None
    """As `model.batch_size`."""
    pad_token: str | None = None
    """As `model.pad_token`, which does not apply to a model of another path."""
    template: dict[ArgumentName, bool | int | float | str] | None = None
    """As `model.template`, which does not apply to a model of another path."""

    def over(self, model: ModelSettings) -> ModelSettings:
        """The model's settings, with those of this role in their place."""
        own = {name: value for name, value in self.model_dump(exclude={"kind"}).items() if value is not None}
        if self.path not in (None, model.path):
            model = model.model_copy(update={"pad_token": None, "template": {}, "revision": None})
        return model.model_copy(update=own)


class Budget(Frozen):
    """The most that may be asked. What is reached stops the run, which goes on when the same command has a higher one.

    What the journal holds costs nothing.
    """

    max_calls: Annotated[int | None, Field(ge=1), TECHNICAL] = None
    """Requests that a model answers."""
    max_tokens: Annotated[int | None, Field(ge=1), TECHNICAL] = None
    """Tokens read and written together, as the engine counts them; a server that reports none stops the run."""
    max_cost: Annotated[float | None, Field(gt=0), TECHNICAL] = None
    """In the currency of the prices."""


class ScriptedSettings(Frozen):
    """A Python function that answers in place of a model."""

    kind: Literal["scripted"] = "scripted"
    function: str
    """"file.py:function" or "package.module:function". It is called with a `Request`, and returns the text of a reply
    or a `Completion`, both from `constitutional.engines.base`."""
    choices: bool = False
    """Whether the function gives log-probabilities where a request has choices."""
    budget: Budget = Budget()
    """The most that this role may ask of it in a run."""

    @field_validator("function")
    @classmethod
    def _found_from_anywhere(cls, function: str) -> str:
        return resolved(function)


class Prices(Frozen):
    """What a provider asks for a million tokens, in any currency."""

    input: Annotated[float, Field(ge=0), TECHNICAL] = 0.0
    """Tokens that the model reads."""
    cached: Annotated[float | None, Field(ge=0), TECHNICAL] = None
    """Tokens that it reads from its cache; null is the price of any other that it reads."""
    output: Annotated[float, Field(ge=0), TECHNICAL] = 0.0
    """Tokens that it writes, its reasoning included."""

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """The price of so many tokens; the cached ones are among the prompt's."""
        cached = self.input if self.cached is None else self.cached
        read = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached
        return (read + completion_tokens * self.output) / 1e6


class HttpSettings(Frozen):
    """A model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp's server, a hosted service."""

    kind: Literal["http"] = "http"
    url: str
    """Where the API begins, such as http://127.0.0.1:8000/v1"""
    model: str
    """The model's name, as the server lists it and its replies tell. Where these differ, this is the one that the
    replies tell, and `extra.model` the one that is asked for."""
    api_key_env: str | None = None
    """The name of the environment variable that holds the key, which is written nowhere; null sends none."""
    endpoint: Literal["chat", "completions"] = "chat"
    """`chat` leaves the chat template to the server. `completions` sends text, for which `tokenizer` gives the
    template; it goes on from an assistant's first words, and gives log-probabilities of whole choices."""
    tokenizer: str | None = None
    """For `completions`: a folder, or a name on the hub, with the model's tokenizer and chat template."""
    logprobs: Literal["auto", "yes", "no"] = "auto"
    """Whether the server gives log-probabilities of the likeliest tokens; `auto` asks it once."""
    prefill: Literal["auto", "yes", "no"] = "auto"
    """Whether the server goes on from an assistant's first words; `auto` asks it once."""
    structured: Literal["auto", "yes", "no"] = "auto"
    """Whether the server holds replies to a JSON schema; `auto` asks it once."""
    extra: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """More fields of the request's body, such as {reasoning_effort: low}."""
    revision: str = ""
    """Any text. Another text asks everything anew, for when the server has another model under the same name."""
    concurrency: Annotated[int, Field(ge=1), TECHNICAL] = 64
    """Most requests that are open at the same time; how many are best is found out below that."""
    deadline_s: Annotated[float, Field(gt=0), TECHNICAL] = 300.0
    """Seconds in which a request must be answered, all tries together; then it is marked as failed."""
    patience_s: Annotated[float, Field(ge=0), TECHNICAL] = 600.0
    """Seconds that the run waits for a server that is down, before it stops; the same command goes on later."""
    budget: Budget = Budget()
    """The most that this role may ask of it in a run."""
    prices: Prices = Prices()
    """What its provider asks for tokens, for the forecast and for `budget.max_cost`."""

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("is no address of an API; it is to be such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("must not hold a password, which would be written down; use api_key_env")
        return url.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("is no name of an environment variable; name the variable, and never the key itself")
        return name

    def key(self) -> str:
        """The key; empty where none is sent.

        Raises:
            ConfigurationError: the variable is not set, or holds no key.
        """
        name = self.api_key_env
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise ConfigurationError(
                f"the environment variable {name}, which should hold the key for {self.url}, is not set; type "
                f"export {name}=… before the command, or set the role's api_key_env to another name, or to null for "
                "none"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigurationError(f"the environment variable {name} holds characters that no key has; set it anew")
        return key

    def __hash__(self) -> int:
        """A hash of all settings; a mapping has none of its own."""
        return hash(self.model_dump_json())


class VllmSettings(Frozen):
    """A model that vLLM answers with on this machine; a setting that is null is that of the model that is trained."""

    kind: Literal["vllm"] = "vllm"
    path: str | None = None
    """As `model.path`."""
    revision: str | None = None
    """As `model.revision`, which does not apply to a model of another path."""
    dtype: Dtype | None = None
    """As `model.dtype`."""
    pad_token: str | None = None
    """As `model.pad_token`, which does not apply to a model of another path."""
    template: dict[ArgumentName, bool | int | float | str] | None = None
    """As `model.template`, which does not apply to a model of another path."""
    adapter: str | None = None
    """A folder with a LoRA adapter, which is not merged."""
    tensor_parallel: Annotated[int, Field(ge=1), TECHNICAL] = 1
    """GPUs over which the model is divided."""
    data_parallel: Annotated[int, Field(ge=1), TECHNICAL] = 1
    """Copies of the model that answer side by side, on GPUs of their own."""
    memory: Annotated[float, Field(gt=0, le=1), TECHNICAL] = 0.9
    """The share of a GPU's memory that it takes; on a CPU, of 4 GiB for what it has read."""
    max_length: Annotated[int | None, Field(ge=1), TECHNICAL] = None
    """Longest request with its reply, in tokens; null is the longest that the model takes. Less needs less memory."""
    budget: Budget = Budget()
    """The most that this role may ask of it in a run."""

    def over(self, model: ModelSettings) -> "VllmSettings":
        """These settings, with the model's where they leave something out."""
        taken = ["path", "revision", "dtype", "pad_token", "template"]
        same = self.path in (None, model.path)
        values = {name: getattr(model, name) for name in (taken if same else ["dtype"]) if getattr(self, name) is None}
        return self.model_copy(update=values)

    def __hash__(self) -> int:
        """A hash of all settings; a mapping has none of its own."""
        return hash(self.model_dump_json())


RoleSettings = Annotated[LocalSettings | ScriptedSettings | HttpSettings | VllmSettings, Field(discriminator="kind")]
"""What a run is told of a model that plays a role."""
EngineSettings = ModelSettings | ScriptedSettings | HttpSettings | VllmSettings
"""What an engine is made of."""


def role_settings(role: RoleSettings, model: ModelSettings) -> EngineSettings:
    """A role's engine; what a local one does not say is as the model that is trained has it."""
    return role.over(model) if isinstance(role, LocalSettings | VllmSettings) else role


class NoClusterSettings(Frozen):
    """Models answer on this machine, or behind their servers."""

    kind: Literal["none"] = "none"


class RayClusterSettings(Frozen):
    """Models answer on a Ray cluster, each in actors, which are processes with the model on any node.

    Settings of a cluster change no result.
    """

    kind: Literal["ray"] = "ray"
    address: str = ""
    """Where the cluster's head is, such as 10.0.0.1:6379. Empty takes the environment's RAY_ADDRESS, or starts a
    cluster of this machine alone, which ends with the command."""
    max_actors: Annotated[int, Field(ge=1)] = 8
    """Most actors of a model. One is started whenever requests wait and all others have enough to do; a cluster that
    scales by itself adds nodes for it."""
    gpus: Annotated[float | None, Field(ge=0)] = None
    """GPUs of an actor. Null is `tensor_parallel` × `data_parallel` for vLLM and 1 for transformers, or 0 where the
    cluster has no GPU when the model is first asked; type it where GPUs come only when they are asked for. A function
    has none."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPU cores of an actor."""
    chunk: Annotated[int, Field(ge=1)] = 64
    """Most requests that an actor is handed at once. It has two such chunks at a time, and four with vLLM; what it has
    is paid twice where it dies."""
    idle_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds after which an actor with nothing to do ends. Where another model waits for its place, it ends sooner."""
    patience_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that requests wait for a first actor, which needs a free place on the cluster."""

    @field_validator("address")
    @classmethod
    def _a_place(cls, address: str) -> str:
        if address and not re.fullmatch(r"[^\s:/]+:\d+|\[[0-9A-Fa-f:]+\]:\d+", address):
            raise ValueError("must be HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
        return address
