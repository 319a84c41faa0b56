"""How a conversation becomes tokens: by its model's chat template, in which content is never control.

A text that spells a control token (`<|im_end|>`, `</s>`, a `<think>` that is a token) is encoded as its letters where
it is content: a question, an answer, a system text. Control tokens are those that the template writes itself.
"""

import contextlib
import datetime
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from salign.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What every template is told that asks for the day, so that a prompt has the same bytes today, tomorrow and in a
# replay: the day that Llama 3's templates fall back to.
DATE = datetime.date(2024, 7, 26)
_NOW = re.compile(r"strftime_now\(\s*(?P<quote>[\"'])(?P<format>(?:(?!(?P=quote)).)*)(?P=quote)\s*\)")

# How a thought begins and ends: DeepSeek's, Qwen's and most others'; some fine-tunes'; Mistral's.
THOUGHTS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
_OPENED = re.compile(rf"({'|'.join(map(re.escape, THOUGHTS))})\s*\Z")

# Spellings of control tokens in the families whose templates are in use, for where the tokenizer is not known. Each
# begins with one of `_FIRST`.
_FIRST = "<\uff1c[\u25c1"
_SPELLINGS = re.compile(
    r"""[<\uff1c\[\u25c1] (?:
      (?<=[<\uff1c]) (?: [|\uff5c][^\s<>|\uff5c]{1,64}[|\uff5c]? | \w{1,64}[|\uff5c] ) [>\uff1e]
    | (?<=<) /? (?: s | bos | eos | pad | unk | mask | cls | sep | sop | eop | eod | eot | endoftext | think | thinking
            | tool_calls? | tool_responses? | (?:start|end)_of_\w+ | fim_\w+ | unused_?\d+ | extra_id_\d+
            | reserved\w*_\d+ | SPECIAL_\d+ | [A-Z_]+_TOKEN ) >
    | (?<=\[) /? (?: INST | SYSTEM_PROMPT | AVAILABLE_TOOLS | TOOL_RESULTS | TOOL_CALLS | TOOL_CONTENT | MODEL_SETTINGS
            | THINK | [gs]?MASK | CLS | SEP | PAD | UNK | BOS | EOS ) \]
    | (?<=<) </?SYS>> | (?<=\u25c1) /?think\u25b7
    )""",
    re.VERBOSE,
)

# Lines of a compiled template that are run while it is tried; the longest in use take some thousands.
_MOST_LINES = 1_000_000

Message = dict[str, Any]
# What stands for a text when a template is tried; letters, digits and hyphens come through what templates do to a text.
_SYSTEM, _USER, _ASSISTANT, _NEXT = (f"salign-{number}-text" for number in range(4))


def spells_control(text: str) -> bool:
    """Whether a text spells what is a control token in one of the common families."""
    # Few of these characters are in most texts: to look for each takes a third of a scan for all of them.
    for first in _FIRST:
        at = text.find(first)
        while at >= 0:
            if _SPELLINGS.match(text, at):
                return True
            at = text.find(first, at + 1)
    return False


def break_up(text: str, spellings: re.Pattern[str] = _SPELLINGS) -> str:
    """A text in which nothing spells a control token: a space stands behind the first character of each that did.

    For whoever encodes the text elsewhere, as servers do, and would take it for control.
    """
    if spellings is _SPELLINGS and not spells_control(text):
        return text
    return spellings.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def control_tokens(tokenizer: "PreTrainedTokenizerBase", source: str) -> dict[str, int]:
    """The tokens that are control, with their ids: those marked as special, and added ones that the template names.

    White space and words that were added for their own sake are ordinary text.
    """
    named = getattr(tokenizer, "chat_control_tokens", None) or ()
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
        or token.content in named
        or (token.content in source and not re.fullmatch(r"[\w\s]*", token.content))
    }


def _frozen(source: str, name: str) -> str:
    """A template that knows no other day than `DATE`."""
    frozen = _NOW.sub(lambda found: f"{found['quote']}{DATE.strftime(found['format'])}{found['quote']}", source)
    if re.search(r"strftime_now\s*\(", frozen):
        raise ConfigError(
            f"the chat template of model {name} asks for the time in a way that cannot be fixed to one date: its "
            "prompts would differ from day to day. Write the format of strftime_now as a plain string into its "
            "chat_template.jinja."
        )
    return frozen


class _EndlessError(Exception):
    pass


@contextlib.contextmanager
def _few_lines() -> Iterator[None]:
    """Ends a template that loops: after `_MOST_LINES` lines it fails."""
    left = _MOST_LINES

    def count(frame: FrameType, *_: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != "<template>":  # as jinja names its code
            return None
        left -= 1
        if left < 0:
            raise _EndlessError(f"it loops: a plain conversation takes it more than {_MOST_LINES:,} lines")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


class ChatTemplate:
    """A tokenizer's chat template: what it writes around texts, learnt by trying it, and how its texts are encoded.

    Its texts are *marked*: what spells a control token in their content stands between private-use characters, which
    `encode` knows; they are not to be encoded by anybody else.

    Attributes:
        opens_thinking: The prompt ends with an opened thought: a reply begins inside of it.
        has_system: The template has a place for a system text; else it goes before the user's, with an empty line
            between.
        adds_bos: The tokenizer begins texts with its begin token.
        end: The token that ends an assistant's turn: what the template writes behind the content, else the eos token.
        gap: White space that the template writes before it.
        ends: The tokens at which a reply is over: the eos token, `end`, and those with which the template begins
            the next turn.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Tries the template.

        Raises:
            ConfigError: It fails on a plain question, does not write it, or loops.
        """
        self._tokenizer = tokenizer
        self._name = str(tokenizer.name_or_path)
        self.source = _frozen(tokenizer.get_chat_template(), self._name)
        self.control = control_tokens(tokenizer, self.source)
        longest_first = sorted(self.control, key=len, reverse=True)
        self._spellings = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        bos = tokenizer.bos_token_id
        self.adds_bos = bos is not None and tokenizer.encode("a")[:1] == [bos]
        self._bos = str(tokenizer.bos_token) if self.adds_bos else ""
        with _few_lines():
            self._learn()

    def _learn(self) -> None:
        user = {"role": "user", "content": _USER}
        begun = self._apply([[user]])[0]
        if _USER not in begun:
            raise ConfigError(
                f"the chat template of model {self._name} does not contain the user's message: it may expect messages "
                "in parts, as multimodal models do. Give the model a template for plain text (chat_template.jinja), "
                "or use another model."
            )
        system = self._try([{"role": "system", "content": _SYSTEM}, user])
        self.has_system = _SYSTEM in system and _USER in system
        self._learn_turn(user, begun)

    def _learn_turn(self, user: Message, begun: str) -> None:
        """What the template writes before and behind what an assistant says."""
        assistant = {"role": "assistant", "content": _ASSISTANT}
        whole = self._try([user, assistant], generation=False)
        before, after = "", whole.rpartition(_ASSISTANT)[2]
        if whole.startswith(begun) and _ASSISTANT in whole[len(begun) :]:
            before, _, after = whole[len(begun) :].partition(_ASSISTANT)
        before = before if before.strip() else ""
        # Of a template that knows no generation prompt, what it writes before an assistant's content is one.
        knows_prompt = self._try([user], generation=False) != begun
        self._header, opening = ("", before) if knows_prompt else (before, "")
        thought = _OPENED.search(begun + self._header)
        self.opens_thinking = thought is not None
        if thought is not None and not opening:
            opening = ("\n" if thought[0].endswith("\n") else "\n\n") + THOUGHTS[thought[1]] + "\n\n"
        self._opening = opening
        end = self._spellings.match(after.lstrip())
        self.gap = after[: len(after) - len(after.lstrip())] if end is not None else ""
        eos = self._tokenizer.eos_token_id
        assert isinstance(eos, int)
        self.end = eos if end is None else self.control[end[0]]
        self.ends = frozenset({eos, self.end})
        tags = {*THOUGHTS, *THOUGHTS.values()}
        if all(found in tags for found in self._spellings.findall(opening)):
            following = self._try([user, assistant, {"role": "user", "content": _NEXT}], generation=False)
            between = following.rpartition(_ASSISTANT)[2].partition(_NEXT)[0] if _NEXT in following else ""
            self.ends |= {self.control[found] for found in self._spellings.findall(between)}

    def _apply(self, conversations: Sequence[Sequence[Message]], *, generation: bool = True) -> list[str]:
        try:
            texts: Any = self._tokenizer.apply_chat_template(
                [list(messages) for messages in conversations],
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except Exception as error:  # whatever a template leads to
            said = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            raise ConfigError(
                f"the chat template of model {self._name} fails: {said}. Fix its chat_template.jinja; in training "
                "and evaluation, train.template=alpaca replaces it."
            ) from error
        return list(texts)

    def _try(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """What the template writes; nothing where it refuses such a conversation."""
        try:
            return self._apply([messages], generation=generation)[0]
        except ConfigError as error:
            if isinstance(error.__cause__, _EndlessError):
                raise
            return ""

    # --- texts -----------------------------------------------------------------------------------

    def mark(self, content: str) -> str:
        """A content in which what spells a control token is marked, to be encoded as its letters."""
        from transformers.utils.chat_template_utils import mark_control_tokens

        marked: str = mark_control_tokens(content, self._spellings)
        return marked

    def prompts(self, conversations: Iterable[Sequence[Message]], *, answer: bool = False) -> list[str]:
        """Each conversation as a marked text, up to where a reply begins, or where its answer does.

        Args:
            conversations: Messages with `role` and `content`, the last of them the user's.
            answer: What a model writes before its answer is written too: a thought that the template opens is closed,
                empty; so is what the template writes before an assistant's words of which the prompt says nothing.
        """
        marked = [self._marked(messages) for messages in conversations]
        tail = self._header + (self._opening if answer else "")
        return [self._begun(text) + tail for text in self._apply(marked)] if marked else []

    def continued(self, messages: Sequence[Message]) -> str:
        """A conversation as a marked text that breaks off within its last message, an assistant's."""
        *before, last = messages
        return self.prompts([before], answer=True)[0] + self.mark(str(last["content"]))

    def response(self, text: str) -> str:
        """What an assistant says as a marked text, up to the token that ends its turn."""
        return self.mark(text) + self.gap

    def _begun(self, text: str) -> str:
        return text if text.startswith(self._bos) else self._bos + text

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        marked = [{**message, "content": self.mark(str(message["content"]))} for message in messages]
        if not self.has_system and len(marked) > 1 and marked[0]["role"] == "system":
            system, first, *rest = marked
            marked = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return marked

    # --- tokens ----------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of marked texts, without any that the tokenizer puts around a text."""
        found = self._encode_plainly(texts)
        start, end = marks()
        for number, text in enumerate(texts):
            if start in text or end in text:
                found[number] = self._encode_marked(text)
        return found

    def _encode_plainly(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._tokenizer.is_fast:
            encoded: Any = self._tokenizer(
                list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            ids: list[list[int]] = encoded["input_ids"]
            return ids
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        # On all cores, and without the offsets that a call of the tokenizer works out.
        return [one.ids for one in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _encode_marked(self, text: str) -> list[int]:
        from transformers.utils.chat_template_utils import encode_marked_chat

        try:
            ids: list[int] = encode_marked_chat(self._tokenizer, text)
        except ValueError:
            # The vocabulary has the token as a word too (Unigram's and word tables may): its letters give it again.
            start, end = marks()
            marked = re.compile(f"{start}({self._spellings.pattern}){end}")
            broken = marked.sub(lambda found: break_up(found[1], self._spellings), text)
            ids = self._encode_plainly([broken.replace(start, "").replace(end, "")])[0]
        return ids


@functools.cache
def marks() -> tuple[str, str]:
    """The characters between which what is marked stands."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    start, _, end = mark_control_tokens("x", re.compile("x"))
    return start, end


@functools.lru_cache(maxsize=32)
def tried(tokenizer: "PreTrainedTokenizerBase", *_: object) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate:
    """A tokenizer's chat template, tried once.

    Raises:
        ConfigError: It fails.
    """
    return tried(tokenizer, tokenizer.get_chat_template(), tokenizer.eos_token, len(tokenizer))


def conversation(user: str, system: str | None = None) -> list[Message]:
    """One turn of a user's, under a system text if there is one."""
    messages = [{"role": "user", "content": user}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def render(
    tokenizer: "PreTrainedTokenizerBase", user: str, system: str | None = None, *, answer: bool = False
) -> list[int]:
    """Token ids of one turn, up to where the reply begins; with `answer`, to where its answer does.

    The two differ where a template opens a thought, or has a model write something else before its answer.
    """
    template = chat_template(tokenizer)
    return template.encode(template.prompts([conversation(user, system)], answer=answer))[0]


def opens_thinking(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a reply begins inside of a thought that the template opens."""
    return chat_template(tokenizer).opens_thinking
