"""Conversations as files hold them: lists of messages, ShareGPT's turns, and HH's transcripts."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from salign.columns import check_columns, is_empty
from salign.dataset.templates import plain_query
from salign.files import RowError
from salign.records import Message
from salign.society.queries import with_input

Role = Literal["system", "user", "assistant"]

PROMPTS = ("prompt", "question", "instruction", "query", "conversations")
"""Columns that may hold the prompt."""
BESIDE_PROMPT = ("system", "input", "history")
"""Columns that belong to the prompt: a system text, what an instruction is about, earlier [user, assistant] turns."""

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
# HelpSteer's prompts of several turns.
_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_NAMES = {"user": "Human", "assistant": "Assistant"}
_MESSAGE = frozenset({"role", "content", "from", "value"})


class Prompt(NamedTuple):
    """A prompt: the user's last message, and the messages before it."""

    query: str
    context: tuple[Message, ...] = ()


def messages_of(value: Sequence[Any], column: str, ignored: frozenset[str] = frozenset()) -> list[Message]:
    """Reads a list of {role, content} or {from, value} as messages.

    Raises:
        RowError: A message is of another form, or has keys that are not read.
    """
    messages = []
    for item in value:
        role, content = None, None
        if isinstance(item, dict):
            check_columns(item, _MESSAGE, ignored, where=f"in a message of {column}, ", mapping="")
            role = item.get("role", item.get("from"))
            content = item.get("content", item.get("value"))
        if not isinstance(content, str) or not isinstance(role, str) or role.lower() not in _ROLES:
            raise RowError(
                f"a message of {column} must be {{role, content}} or {{from, value}}: the role system, user (human) or "
                "assistant (gpt), and the content a text"
            )
        messages.append(Message(_ROLES[role.lower()], content.strip()))
    return messages


def merged(messages: Sequence[Message]) -> list[Message]:
    """Joins messages that one speaker says in a row: chat templates want speakers to alternate."""
    one_each: list[Message] = []
    for message in messages:
        if one_each and one_each[-1].role == message.role:
            content = f"{one_each.pop().content}\n\n{message.content}".strip()
            one_each.append(Message(message.role, content))
        else:
            one_each.append(message)
    return one_each


def conversation_of(value: object, column: str, ignored: frozenset[str] = frozenset()) -> list[Message] | None:
    """Reads messages, a single message, or a transcript in the form of HH and HelpSteer; None for other values.

    HH's is 'Human: ... Assistant: ...'; HelpSteer puts a mark between turns, of which the first has none.

    Raises:
        RowError: As `messages_of`.
    """
    if isinstance(value, dict):
        return messages_of([value], column, ignored)
    if isinstance(value, list):
        return messages_of(value, column, ignored)
    if not isinstance(value, str) or "Assistant" not in value:
        return None
    if "<extra_id_1>Assistant\n" in value:
        first, *rest = _HELPSTEER_TURN.split(value.strip())
        turns = zip(rest[::2], rest[1::2], strict=True)
        return [Message("user", first.strip()), *(Message(_ROLES[name.lower()], text.strip()) for name, text in turns)]
    parts = _TURN.split(value.strip())  # before the first turn, name, text, name, text, ...
    if parts[0] or parts[1:2] != ["Human"] or "Assistant" not in parts[1::2]:
        return None
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(_ROLES[name.lower()], text.strip()) for name, text in turns]


def text_of(value: object, column: str) -> str:
    """Returns a text without the space around it.

    Raises:
        RowError: It is none.
    """
    if not isinstance(value, str):
        raise RowError(f"{column} is neither a text nor a list of messages")
    return value.strip()


def reply_of(value: object, column: str, ignored: frozenset[str] = frozenset()) -> str:
    """Reads a reply: a text, or one message of the assistant.

    Raises:
        RowError: It is neither.
    """
    if isinstance(value, str):
        return value.strip()
    messages = conversation_of(value, column, ignored)
    return text_of(value, column) if messages is None else only_reply(messages, column)


def only_reply(messages: Sequence[Message], column: str) -> str:
    """Returns the text of a single message of the assistant.

    Raises:
        RowError: There are others.
    """
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RowError(
            f"{column} must have exactly one assistant message after the prompt, but has "
            f"{', '.join(message.role for message in messages) or 'none'}"
        )
    return messages[0].content


def prompt_of_messages(messages: Sequence[Message]) -> Prompt:
    """Makes a prompt of messages that end with the user's, and removes the released Alpaca scaffold.

    Raises:
        RowError: The messages do not alternate between user and assistant after at most one system text, or do not end
            with the user's.
    """
    if messages and messages[-1] == Message("assistant", ""):  # a transcript that ends where the reply begins
        messages = messages[:-1]
    messages = merged(messages)
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns or turns[-1].role != "user":
        raise RowError("the prompt does not end with a user message")
    if turns[0].role != "user" or any(turn.role == "system" for turn in turns):
        raise RowError("a conversation begins with a user message, and a system text comes before all other messages")
    if any(not turn.content for turn in turns[:-1]):
        raise RowError("a message earlier in the conversation is empty")
    context = tuple(turn for turn in messages[:-1] if turn.content)
    query = turns[-1].content
    return Prompt(query if context else plain_query(query), context)


def prompt_of(row: dict[str, Any], ignored: frozenset[str] = frozenset()) -> Prompt:
    """Finds the prompt of a row: the column of PROMPTS that it has, with the columns beside it.

    Raises:
        RowError: None of them holds one, two hold different ones, or it is malformed.
    """
    names = [name for name in PROMPTS if row.get(name)]
    if not names:
        raise RowError(
            f"there is no prompt: it may stand in {', '.join(PROMPTS)}; name another column with columns: "
            "{prompt: COLUMN}"
        )
    if any(row[name] != row[names[0]] for name in names[1:]):
        raise RowError(
            f"{' and '.join(names)} hold different texts, and either may be the prompt; leave all but one out with "
            "ignore_columns, or map them with columns"
        )
    value = row[names[0]]
    messages = conversation_of(value, names[0], ignored)
    if messages is None:
        text = text_of(value, names[0])
        if not any(row.get(name) for name in BESIDE_PROMPT):
            return Prompt(plain_query(text))
        messages = [Message("user", text)]
    return _with_beside(messages, row)


def _with_beside(messages: list[Message], row: dict[str, Any]) -> Prompt:
    """The prompt with the row's `input`, `history` and `system`."""
    given, history, system = (row.get(name) for name in ("input", "history", "system"))
    if not is_empty(given):
        if len(messages) != 1:
            raise RowError(
                "the row has an input and a prompt of several messages, and it is ambiguous where the input belongs"
            )
        content = with_input(plain_query(messages[0].content), text_of(given, "input"))
        messages = [Message("user", content)]
    if not is_empty(history):
        messages = [*_history(history), *messages]
    if not is_empty(system):
        if messages[0].role == "system":
            raise RowError("the row has a column system, and its messages have a system text too")
        messages = [Message("system", text_of(system, "system")), *messages]
    return prompt_of_messages(messages)


def _history(value: object) -> list[Message]:
    messages = []
    for pair in value if isinstance(value, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError("history must be a list of [what the user said, what the assistant answered]")
        messages += [Message("user", pair[0].strip()), Message("assistant", pair[1].strip())]
    return messages


def transcript(messages: Sequence[dict[str, str]]) -> str:
    """Writes a conversation as one text: a single message as it is, several as a transcript, a system text first."""
    before = [message["content"] for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    if len(turns) == 1:
        return "\n\n".join([*before, turns[0]["content"]])
    return "\n\n".join([*before, *(f"{_NAMES[turn['role']]}: {turn['content']}" for turn in turns)])
