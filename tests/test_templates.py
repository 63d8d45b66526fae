"""Every real chat template: what is supervised is what the model has to write behind its generation prompt.

What must come out is asked of `apply_chat_template` itself, for one beginning of a conversation after the
other. What a model stops at is written down here by hand: no template says it. So are the templates that need
a row for each turn, and those that are refused, with the reason: a change of any of them is seen.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import transformers

import assets
from assets import CHAT_TEMPLATES
from conftest import needs_assets
from dskd.train.rendering import Rendering, Template, Turn
from dskd.train.rows import Conversation
from tiny import assistant, system, user

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


# Conversations -----------------------------------------------------------------


def calling(identifier: str, city: str, content: str = "") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": city}}
    return assistant(content, tool_calls=[{"id": identifier, "type": "function", "function": function}])


def result(identifier: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "name": "get_weather", "tool_call_id": identifier, "content": content}


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}

# No word is in two messages of one, so a text says whose it is. Mistral wants identifiers of nine characters.
KINDS: Mapping[str, Conversation] = {
    "one turn": Conversation([user("Alpha question?"), assistant("Bravo answer.")]),
    "several turns": Conversation(
        [
            user("Alpha question?"),
            assistant("Bravo answer."),
            user("Charlie request?"),
            assistant("Delta reply."),
            user("Echo demand?"),
            assistant("Foxtrot response."),
        ]
    ),
    "system": Conversation(
        [
            system("Sierra rules."),
            user("Alpha question?"),
            assistant("Bravo answer."),
            user("Charlie request?"),
            assistant("Delta reply."),
        ]
    ),
    "thinking": Conversation(
        [
            user("Alpha question?"),
            assistant("Bravo answer.", reasoning_content="Romeo considered."),
            user("Charlie request?"),
            assistant("Delta reply.", reasoning_content="Tango pondered."),
        ]
    ),
    "tools": Conversation(
        [
            user("Alpha question?"),
            calling("call00001", "Paris"),
            result("call00001", "Victor report."),
            assistant("Bravo answer."),
            user("Charlie request?"),
            assistant("Delta reply."),
        ],
        tools=[WEATHER],
    ),
    "words beside a call": Conversation(
        [
            user("Alpha question?"),
            calling("call00001", "Paris", "Uniform remark."),
            result("call00001", "Victor report."),
            assistant("Bravo answer."),
        ],
        tools=[WEATHER],
    ),
    "echo": Conversation(
        [user("Say Yes."), assistant("Yes", reasoning_content="Yes, they want Yes of me.")],
    ),
    "white space": Conversation(
        [
            user(" Alpha question?\n"),
            assistant("\n Bravo answer.  \n"),
            user("Charlie request?"),
            assistant("  Delta\n\n reply. "),
        ]
    ),
}


# What is known of the templates ------------------------------------------------

STOPS: Mapping[str | None, tuple[str, ...]] = {
    "<|im_end|>": (
        *("Bielik-11B-v3.0-Instruct", "HuggingFaceTB-SmolLM3-3B", "Kimi-K2-Instruct", "Kimi-K2-Thinking"),
        *("LFM2-8B-A1B", "LFM2.5-8B-A1B", "LFM2.5-Instruct", "MiMo-VL", "moonshotai-Kimi-K2"),
        *("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"),
        *("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-QwQ-32B", "Qwen-Qwen2.5-7B-Instruct"),
        *("Qwen-Qwen3-0.6B", "Qwen3-Coder", "Qwen3.5-4B", "StepFun3.5-Flash", "openbmb-MiniCPM5-1B"),
    ),
    "<｜end▁of▁sentence｜>": (
        *("Spark2.5", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-ai-DeepSeek-V3.1"),
        *("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4"),
        *("deepseek-ai-DeepSeek-V4-Flash-0731", "llama-cpp-deepseek-r1"),
    ),
    "<|eot_id|>": (
        *("fireworks-ai-llama-3-firefunction-v2", "meetkai-functionary-medium-v3.1"),
        *("meetkai-functionary-medium-v3.2", "meta-llama-Llama-3.1-8B-Instruct"),
        *("meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct"),
    ),
    "</s>": (  # eos_token, which these write by its name
        *("Mistral-Small-3.2-24B-Instruct-2506", "mistralai-Ministral-3-14B-Reasoning-2512"),
        *(
            "mistralai-Mistral-Nemo-Instruct-2407",
            "unsloth-Apriel-1.5",
            "unsloth-mistral-Devstral-Small-2507",
        ),
    ),
    "<|END_OF_TURN_TOKEN|>": (
        *("Cohere2MoE", "CohereForAI-c4ai-command-r-plus-tool_use"),
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    ),
    "<|end_of_text|>": (
        *("ibm-granite-granite-3.3-2B-Instruct", "ibm-granite-granite-4.0", "ibm-granite-granite-4.1"),
    ),
    "</assistant>": ("poolside-Laguna-S-2.1", "poolside-Laguna-XS-2.1", "poolside-Laguna-XS.2"),
    "<|end|>": ("Apriel-1.6-15b-Thinker-fixed", "microsoft-Phi-3.5-mini-instruct", "upstage-Solar-Open-100B"),
    "<|user|>": ("GLM-4.6", "GLM-4.7-Flash"),  # the beginning of what is not theirs to write
    "<|message_sep|>": ("GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B"),
    "[e~[": ("MiniMax-M2", "MiniMax-M3"),
    "<turn|>": ("google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"),
    "<end_of_turn>": ("google-gemma-2-2b-it",),
    "<|assistant_end|>": ("Apertus-8B-Instruct",),
    "<seed:eos>": ("ByteDance-Seed-OSS",),
    "<|end_of_msg|>": ("Kimi-K3",),
    "<end_of_sentence>": ("MiniMax-M1",),
    "<SPECIAL_12>": ("NVIDIA-Nemotron-Nano-v2",),
    "<sep>": ("Reka-Edge",),
    "<|role_end|>": ("inclusionai-ling-3.0-flash",),
    "<|eot|>": ("muse-glimmer",),
    "<|return|>": ("openai-gpt-oss-120b",),
    "<｜hy_eos:opensource｜>": ("tencent-Hy3",),
    None: ("llama-cpp-rwkv-world",),  # a blank line
}
"""The marker at which the model stops, behind an answer."""

STOP_OF: Mapping[str, str | None] = {name: stop for stop, names in STOPS.items() for name in names}

STOP_OF_A_CALL: Mapping[str, str] = {
    "Apertus-8B-Instruct": "<|tools_suffix|>",
    "GLM-4.6": "<|observation|>",
    "GLM-4.7-Flash": "<|observation|>",
    "google-gemma-4-31B-it": "<|tool_response>",
    "meetkai-functionary-medium-v3.1": "<|eom_id|>",
    "openai-gpt-oss-120b": "<|call|>",
    "upstage-Solar-Open-100B": "<|calls|>",
}
"""The marker behind a call, where it is another one."""

NEEDS: Mapping[str, Mapping[str, Any]] = {
    "fireworks-ai-llama-3-firefunction-v2": {"functions": "[]", "datetime": "a day"},
}
"""Variables without which a template writes nothing."""

EOS: Mapping[str, str] = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|END_OF_TURN_TOKEN|>",
    "fireworks-ai-llama-3-firefunction-v2": "<|eot_id|>",
}
"""The end of sequence of tokenizers whose templates begin another turn behind the last, asked to or not."""

NEEDS_A_LIST = (
    *("CohereForAI-c4ai-command-r-plus-tool_use", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
)
"""Those that go through the tools even where there are none."""

EVERY = tuple(KINDS)
CALLS = ("tools", "words beside a call")
THOUGHT = ("thinking", "echo")
UNTHOUGHT = tuple(kind for kind in KINDS if kind not in THOUGHT)
SAID_ONLY = tuple(kind for kind in KINDS if kind not in CALLS)
SEVERAL = ("several turns", "system", "thinking", "tools", "white space")


def varied(kinds: Sequence[str], variable: str) -> list[str]:
    """Conversations for a template with a variable."""
    return [f"{kind}, {variable}" for kind in kinds]


VARIED: Mapping[str, Sequence[tuple[str, Any, Sequence[str]]]] = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": [("enable_thinking", True, SAID_ONLY)],
    "GLM-4.7-Flash": [("enable_thinking", False, UNTHOUGHT), ("clear_thinking", False, THOUGHT)],
    "LFM2.5-8B-A1B": [("preserve_thinking", True, THOUGHT)],
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": [
        ("enable_thinking", False, UNTHOUGHT),
        ("truncate_history_thinking", False, THOUGHT),
    ],
    "Qwen-Qwen3-0.6B": [("enable_thinking", False, UNTHOUGHT)],
    "Spark2.5": [("enable_thinking", False, UNTHOUGHT)],
    "deepseek-ai-DeepSeek-V3.1": [("thinking", False, EVERY)],
    "deepseek-ai-DeepSeek-V3.2": [("thinking", True, EVERY)],
    "deepseek-ai-DeepSeek-V4": [("thinking", True, EVERY)],
    "google-gemma-4-31B-it": [("enable_thinking", True, EVERY)],
    "google-gemma-4-31B-it-interleaved": [("enable_thinking", True, EVERY)],
    "poolside-Laguna-XS-2.1": [("enable_thinking", True, THOUGHT)],
    "poolside-Laguna-XS.2": [("enable_thinking", True, THOUGHT)],
    "tencent-Hy3": [("reasoning_effort", "high", THOUGHT)],
}
"""Variables that change what a template writes, or that settle what is refused without them."""

APART: Mapping[str, Sequence[str]] = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": SEVERAL,
    "GLM-4.6": ["thinking"],
    "GLM-4.7-Flash": ["thinking"],
    "LFM2.5-8B-A1B": ["thinking"],
    "MiniMax-M2": ["thinking"],
    "Mistral-Small-3.2-24B-Instruct-2506": ["tools"],
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ["thinking"],
    "NVIDIA-Nemotron-Nano-v2": ["several turns", "system", "thinking", "words beside a call", "white space"],
    "Qwen-QwQ-32B": [*SEVERAL, "words beside a call"],
    "Qwen-Qwen3-0.6B": [
        *SEVERAL,
        "words beside a call",
        *varied([*CALLS, "several turns", "system", "white space"], "enable_thinking=False"),
    ],
    "Qwen3.5-4B": SEVERAL,
    "StepFun3.5-Flash": SEVERAL,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": SEVERAL,
    "deepseek-ai-DeepSeek-V3.2": [*SEVERAL, "words beside a call", *varied(SEVERAL, "thinking=True")],
    "deepseek-ai-DeepSeek-V4": varied(
        ["several turns", "system", "thinking", "white space"], "thinking=True"
    ),
    "google-gemma-4-31B-it": [*SEVERAL, *varied(["words beside a call"], "enable_thinking=True")],
    "google-gemma-4-31B-it-interleaved": SEVERAL,
    "llama-cpp-rwkv-world": ["several turns", "system", "thinking", "white space"],
    "mistralai-Mistral-Nemo-Instruct-2407": ["system", "tools"],
    "openai-gpt-oss-120b": SEVERAL,
    "openbmb-MiniCPM5-1B": ["thinking"],
    "tencent-Hy3": varied(["thinking"], "reasoning_effort=high"),
    "unsloth-Apriel-1.5": CALLS,
}
"""Where each turn is a row of its own: a later one changes what it looks like, or no marker ends it."""

MENDED: Mapping[str, Sequence[str]] = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": [*SAID_ONLY, "tools"],
    "Qwen-QwQ-32B": EVERY,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": [*SAID_ONLY, "tools"],
    "deepseek-ai-DeepSeek-V3.2": EVERY,
    "google-gemma-4-31B-it": [*SAID_ONLY, "tools"],
    "google-gemma-4-31B-it-interleaved": [*SAID_ONLY, "tools"],
    "mistralai-Mistral-Nemo-Instruct-2407": ["system"],
}
"""Where the template drops what the generation prompt ends in, an empty block of reasoning, say."""

TEXT_ARGUMENTS = ("meetkai-functionary-medium-v3.2",)
"""Templates that join the arguments of a call as text."""

REFUSED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "the generation prompt ends in": {
        "Apertus-8B-Instruct": CALLS,
        "Apriel-1.6-15b-Thinker-fixed": EVERY,
        "Cohere2MoE": UNTHOUGHT,
        "GLM-4.7-Flash": UNTHOUGHT,
        "MiniMax-M2": UNTHOUGHT,
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": UNTHOUGHT,
        "NVIDIA-Nemotron-Nano-v2": ["tools"],
        "Spark2.5": UNTHOUGHT,
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": EVERY,
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ["words beside a call"],
        "google-gemma-4-31B-it": ["words beside a call"],
        "google-gemma-4-31B-it-interleaved": ["words beside a call"],
        "llama-cpp-deepseek-r1": SAID_ONLY,
        "openai-gpt-oss-120b": ["words beside a call"],
        "poolside-Laguna-XS-2.1": THOUGHT,
        "poolside-Laguna-XS.2": THOUGHT,
        "tencent-Hy3": THOUGHT,
    },
    "the chat template refuses it: 'NoneType' object is not iterable": {
        "CohereForAI-c4ai-command-r-plus-tool_use": EVERY,
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": EVERY,
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": EVERY,
    },
    "does not write its content": {
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ["words beside a call"],
        "MiniMax-M1": ["words beside a call"],
        "Mistral-Small-3.2-24B-Instruct-2506": ["words beside a call"],
        "meta-llama-Llama-3.1-8B-Instruct": ["words beside a call"],
        "meta-llama-Llama-3.2-3B-Instruct": ["words beside a call"],
        "meta-llama-Llama-3.3-70B-Instruct": ["words beside a call"],
        "mistralai-Mistral-Nemo-Instruct-2407": ["words beside a call"],
        "muse-glimmer": ["words beside a call"],
        "upstage-Solar-Open-100B": ["words beside a call"],
    },
    "does not write its call of 'get_weather'": {
        "HuggingFaceTB-SmolLM3-3B": CALLS,
        "LFM2-8B-A1B": CALLS,
        "LFM2.5-Instruct": CALLS,
        "ibm-granite-granite-3.3-2B-Instruct": CALLS,
        "llama-cpp-rwkv-world": CALLS,
        "microsoft-Phi-3.5-mini-instruct": CALLS,
    },
    "the chat template refuses it: access to attribute 'append' of 'list' object is unsafe.": {
        "Kimi-K2-Instruct": CALLS,
        "Kimi-K2-Thinking": CALLS,
    },
    "the chat template refuses it: System role not supported": {
        "google-gemma-2-2b-it": ["system"],
    },
    "the chat template refuses it: Conversation roles must alternate user/assistant/user/assistant/...": {
        "google-gemma-2-2b-it": CALLS,
    },
    "the chat template refuses it: Object of type generator is not JSON serializable": {
        "llama-cpp-deepseek-r1": CALLS,
    },
}
"""What is refused: a part of the reason, the templates and the conversations."""


@dataclass(frozen=True, slots=True)
class Case:
    """A template, a conversation, and one variable for the template, or none."""

    name: str
    kind: str
    variable: tuple[str, Any] | None = None

    @property
    def label(self) -> str:
        return self.kind if self.variable is None else f"{self.kind}, {self.variable[0]}={self.variable[1]}"

    @property
    def conversation(self) -> Conversation:
        given = KINDS[self.kind]
        tools = [] if given.tools is None and self.name in NEEDS_A_LIST else given.tools
        variables = {} if self.variable is None else dict([self.variable])
        return replace(given, tools=tools, template_kwargs=variables)

    def is_in(self, table: Mapping[str, Sequence[str]]) -> bool:
        return self.label in table.get(self.name, ())

    def __str__(self) -> str:
        return f"{self.name}, {self.label}"


EVERY_CASE = [
    *(Case(name, kind) for name in CHAT_TEMPLATES for kind in KINDS),
    *(
        Case(name, kind, (variable, value))
        for name, variations in VARIED.items()
        for variable, value, kinds in variations
        for kind in kinds
    ),
]
REASONS = {case: reason for case in EVERY_CASE for reason, table in REFUSED.items() if case.is_in(table)}
CASES = [case for case in EVERY_CASE if case not in REASONS]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_template = pytest.mark.parametrize(
    "case", [case for case in CASES if case.label in {"several turns", "thinking", "tools"}], ids=str
)


def test_the_tables_name_templates_and_each_has_what_its_model_stops_at() -> None:
    assert sorted(name for names in STOPS.values() for name in names) == sorted(CHAT_TEMPLATES)
    tables = [STOP_OF_A_CALL, NEEDS, EOS, VARIED, APART, MENDED, *REFUSED.values()]
    assert {*NEEDS_A_LIST, *(name for table in tables for name in table)} <= set(CHAT_TEMPLATES)
    labels = {(case.name, case.label) for case in EVERY_CASE}
    assert {
        (name, label) for table in tables[4:] for name, kinds in table.items() for label in kinds
    } <= labels


# Tokenizers --------------------------------------------------------------------

# What looks like a marker; the tokenizer of the model has most of these as tokens of their own.
MARKER = re.compile(r"<[|｜]?[^<>\s{}'\"|｜]+[|｜]?>|\[/?[A-Z_]+\]|\[e~\[")


@functools.cache
def sources() -> Mapping[str, str]:
    return needs_assets(assets.chat_templates)


@functools.cache
def tokenizer_of(name: str) -> Any:
    """A tokenizer that has the template and its markers, and nothing else."""
    source = sources()[name]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    stops = [stop for stop in (STOP_OF[name], STOP_OF_A_CALL.get(name)) if stop is not None]
    backend.add_special_tokens([*stops, *sorted(set(MARKER.findall(source)))])
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=backend,
        bos_token="<s>",  # noqa: S106 - no password
        eos_token="</s>",  # noqa: S106
        chat_template=source,
    )


@functools.cache
def template_of(name: str) -> Template:
    stops = [EOS[name]] if name in EOS else []
    return Template(tokenizer_of(name), kwargs=NEEDS.get(name, {}), stops=stops)


@functools.cache
def rows_of(case: Case) -> list[Rendering]:
    return template_of(case.name).render(case.conversation)


def with_text_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the arguments of its calls as JSON."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def written(case: Case, messages: Sequence[Mapping[str, Any]], *, asking: bool) -> str:
    """What transformers renders."""
    text: str = tokenizer_of(case.name).apply_chat_template(
        [with_text_arguments(message) for message in messages] if case.name in TEXT_ARGUMENTS else messages,
        tools=case.conversation.tools,
        add_generation_prompt=asking,
        tokenize=False,
        **NEEDS.get(case.name, {}),
        **case.conversation.template_kwargs,
    )
    return text


# Turns by hand -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expected:
    """One turn of the assistant, as transformers writes it and as it is supervised."""

    message: Mapping[str, Any]
    before: str
    through: str
    row: Rendering
    turn: Turn
    stop: str | None

    @property
    def text(self) -> str:
        return self.row.text

    @property
    def supervised(self) -> str:
        return self.text[self.turn.start : self.turn.end]

    @property
    def parts(self) -> list[str]:
        """What was said and called."""
        calls = self.message.get("tool_calls", [])
        cities = [call["function"]["arguments"]["city"] for call in calls]
        content = self.message["content"].strip()
        parts = [*([content] if content else []), *cities]
        return sorted(parts, key=self.through.rindex)  # a few write calls first

    @property
    def thought(self) -> str | None:
        """Its reasoning, where the template writes it."""
        reasoning: str | None = self.message.get("reasoning_content")
        return reasoning if reasoning and reasoning in self.through else None


@functools.cache
def turns_of(case: Case) -> list[Expected]:
    """All turns of the assistant, beside what the rows of the conversation have of them."""
    return list(_turns_of(case))


def _turns_of(case: Case) -> Iterator[Expected]:
    messages = case.conversation.messages
    found = [(row, turn) for row in rows_of(case) for turn in row.turns]
    asked = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index, (row, turn) in zip(asked, found, strict=True):
        message = messages[index]
        stop = STOP_OF[case.name]
        yield Expected(
            message=message,
            before=written(case, messages[:index], asking=True),
            through=written(case, messages[: index + 1], asking=False),
            row=row,
            turn=turn,
            stop=STOP_OF_A_CALL.get(case.name, stop) if "tool_calls" in message else stop,
        )


def words_of(*texts: str) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text)}


# What must hold ----------------------------------------------------------------


@each_case
def test_a_turn_begins_where_its_generation_prompt_ends(case: Case) -> None:
    for one in turns_of(case):
        assert one.text[: one.turn.start] == one.before


@each_case
def test_what_is_supervised_is_what_the_template_writes_behind_the_generation_prompt(case: Case) -> None:
    """A last turn may be left open: then its marker is put behind it."""
    for one in turns_of(case):
        if case.is_in(MENDED):
            continue
        assert one.through.startswith(one.before)
        behind = one.through[len(one.before) :]
        if one.stop is None or one.stop in behind:
            assert behind.startswith(one.supervised)
        else:
            assert one.supervised.removesuffix(one.stop).rstrip() == behind.rstrip()


@pytest.mark.parametrize("case", [case for case in CASES if case.is_in(MENDED)], ids=str)
def test_where_the_template_drops_what_the_generation_prompt_ends_in_the_turn_stands_behind_it(
    case: Case,
) -> None:
    turns = turns_of(case)
    assert not all(one.through.startswith(one.before) for one in turns)
    for one in turns:
        assert one.text.startswith(one.before)
        assert one.supervised.removesuffix(one.stop or "").rstrip() in one.through


@each_case
def test_what_was_said_and_called_is_supervised_in_its_order(case: Case) -> None:
    for one in turns_of(case):
        parts = [one.thought, *one.parts] if one.thought else one.parts
        assert re.search(".*".join(map(re.escape, parts)), one.supervised, re.DOTALL)


@each_case
def test_what_may_be_paired_begins_with_what_was_said_or_called(case: Case) -> None:
    """Before it stands what this template alone writes, and the reasoning."""
    for one in turns_of(case):
        assert one.turn.start <= one.turn.content < one.turn.end
        shared = one.text[one.turn.content : one.turn.end]
        assert all(part in shared for part in one.parts)
        assert one.thought is None or one.thought not in shared
        if one.parts[0] == one.message["content"].strip():
            assert shared.startswith(one.parts[0])


@each_case
def test_reasoning_that_the_template_writes_is_found_before_the_content(case: Case) -> None:
    for one in turns_of(case):
        place = one.turn.reasoning
        assert (place is None) == (one.thought is None)
        if place is not None and one.thought is not None:
            assert one.turn.start <= place < one.turn.content
            assert one.text.startswith(one.thought, place)


@each_case
def test_a_turn_ends_with_the_marker_at_which_the_model_stops(case: Case) -> None:
    for one in turns_of(case):
        assert one.turn.has_stop == (one.stop is not None)
        assert one.supervised.endswith(one.stop or one.parts[-1])


@each_case
def test_nothing_that_others_said_is_supervised(case: Case) -> None:
    texts: dict[bool, list[str]] = {True: [], False: []}
    for message in case.conversation.messages:
        own = message["role"] == "assistant"
        texts[own] += [message["content"], message.get("reasoning_content", "")]
    words = words_of(*texts[False]) - words_of(*texts[True])
    assert words
    for one in turns_of(case):
        assert words.isdisjoint(words_of(one.supervised)), one.supervised


@each_case
def test_turns_are_one_row_unless_a_later_one_changes_an_earlier(case: Case) -> None:
    rows, turns = rows_of(case), turns_of(case)
    apart = case.is_in(APART)
    assert [len(row.turns) for row in rows] == ([1] * len(turns) if apart else [len(turns)])
    for row in rows:
        assert all(turn.end <= later.start for turn, later in pairwise(row.turns))


@each_case
def test_the_text_of_a_row_is_the_rendering_of_the_conversation_through_its_last_turn(case: Case) -> None:
    """But for white space at its end, and for the marker that a last turn may lack."""
    for one in turns_of(case):
        if one.turn is one.row.turns[-1] and not case.is_in(MENDED):
            through = re.escape(one.through.rstrip())
            assert re.fullmatch(rf"{through}(\s*{re.escape(one.stop or '')})?\s*", one.text)


@each_template
def test_the_last_turn_alone_is_the_last_of_all(case: Case) -> None:
    [row] = template_of(case.name).render(case.conversation, train_on="last")
    whole = rows_of(case)[-1]
    assert (row.text, row.turns) == (whole.text, whole.turns[-1:])


@each_template
def test_what_the_row_gives_as_a_prompt_is_not_supervised(case: Case) -> None:
    conversation, template = case.conversation, template_of(case.name)
    last = len(conversation.messages) - 1
    given = template.render(replace(conversation, prompt_messages=last))
    assert given == template.render(conversation, train_on="last")


@each_case
def test_texts_that_people_and_models_wrote_are_known_in_the_rendering(case: Case) -> None:
    """All of them, where no tool wrote one: its results stand there in other spelling."""
    messages = case.conversation.messages
    contents = [message["content"].strip() for message in messages if message["content"]]
    for row in rows_of(case):
        spans = {row.text[start:end] for start, end in row.contents}
        thoughts = {message.get("reasoning_content", "").strip() for message in messages}
        assert spans <= {*contents, *thoughts}
        found = [row.text[start:end] for start, end in row.contents if row.text[start:end] not in thoughts]
        if case.kind not in CALLS and row is rows_of(case)[-1]:
            assert sorted(found) == sorted(content for content in contents if content in row.text)


@each_case
def test_what_the_template_does_not_write_is_named(case: Case) -> None:
    turns = turns_of(case)
    for row in rows_of(case):
        of_row = [one for one in turns if one.row is row]
        reasons = [one.message.get("reasoning_content") for one in of_row]
        dropped = [bool(reason) and one.thought is None for reason, one in zip(reasons, of_row, strict=True)]
        assert any("reasoning" in name for name in row.unseen) == any(dropped)
        schema = case.conversation.tools and WEATHER["function"]["description"] not in row.text
        assert ("tools" in row.unseen) == bool(schema)


# What is refused ---------------------------------------------------------------


@pytest.mark.parametrize(("case", "reason"), REASONS.items(), ids=str)
def test_what_cannot_be_told_is_refused_with_the_reason(case: Case, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        rows_of(case)
