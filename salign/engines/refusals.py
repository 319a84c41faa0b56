"""What servers say when they refuse: in whose words, and what of a request is meant."""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# As OpenAI names it, and those who speak as it does.
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_credits"})
# Under which names the words are found, from the outside in: OpenAI's and most others', FastAPI's, OpenRouter's words
# of the provider behind it.
_WRAPPINGS = ("error", "errors", "detail", "metadata", "raw", "message", "msg")
_DEPTH = 8
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)

# Hosted models refuse these one by one; `system` is the role, which some templates do not have.
MAY_BE_REFUSED = ("temperature", "top_p", "seed", "system")
_REFUSED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra|not permitted|not allowed|only the default",
    re.IGNORECASE,
)

# LiteLLM, which stands before other servers: whose words follow, what it adds to them, how it says that it reached none
# (with status 500), and the error of a key that is not its own where it keeps keys in no database (with status 400).
_LITELLM = re.compile(r"litellm\.\w+: ")
_LITELLM_ADDS = re.compile(r"LiteLLM: model group .{1,200}? failed with the error above\..*", re.DOTALL)
_LITELLM_REACHED_NONE = re.compile(
    r"litellm\.\w+: .*?Exception - (?:Connection error|Cannot connect|Server disconnected)"
)
_LITELLM_UNKNOWN_KEY = "no_db_connection"


class Refusal(NamedTuple):
    """What a server says.

    Attributes:
        words: Its own, without what they are wrapped in.
        status: The HTTP status that the body names, where it does.
        is_spent: An account has no credit left, which no pause cures.
        meant: The HTTP status that means what is said, where a server is known to give another.
        is_from_behind: The words are those of a server behind this one.
    """

    words: str
    status: int | None = None
    is_spent: bool = False
    meant: int | None = None
    is_from_behind: bool = False


def refusal_in(answer: bytes) -> Refusal:
    """Reads the body of a refusal: JSON in any of the usual wrappings, a page, or text."""
    text = answer.decode("utf-8", "replace")
    try:
        body: Any = json.loads(text)
    except ValueError:
        return Refusal(_TAGS.sub(" ", text) if text.lstrip().startswith("<") else text)
    error = body
    while isinstance(error, dict | list) and (inner := _unwrapped(error)) is not None and not isinstance(inner, str):
        error = inner
    fields = error if isinstance(error, dict) else {}
    codes = {value for part in (fields, body) if isinstance(part, dict) for value in _codes(part)}
    words = _LITELLM_ADDS.sub("", _words(body))
    return Refusal(
        words,
        next((code for code in codes if isinstance(code, int) and 400 <= code < 600), None),
        not _SPENT.isdisjoint(code for code in codes if isinstance(code, str)),
        401 if _LITELLM_UNKNOWN_KEY in codes else 502 if _LITELLM_REACHED_NONE.match(words) else None,
        _LITELLM.match(words) is not None,
    )


def refusal_in_success(answer: bytes) -> Refusal | None:
    """The refusal in an answer with a status of success, as OpenRouter and some proxies give it; None for none."""
    if b'"error"' not in answer or b'"choices"' in answer[:4096]:
        return None
    try:
        body = json.loads(answer)
    except ValueError:
        return None
    has_error = isinstance(body, dict) and body.get("error") and not body.get("choices")
    return refusal_in(answer) if has_error else None


def _codes(part: Mapping[str, Any]) -> list[Any]:
    found = [part.get(name) for name in ("code", "type", "status", "error_type")]
    return [int(code) if isinstance(code, str) and code.isdecimal() else code for code in found if _is_plain(code)]


def _is_plain(code: Any) -> bool:
    return isinstance(code, int | str) and not isinstance(code, bool)


def _unwrapped(part: Any) -> Any:
    """What is inside an object or list, where it is a wrapping."""
    if isinstance(part, list):
        return part[0] if part else None
    return part.get("error") or part.get("detail") or part.get("errors")


def _words(part: Any, depth: int = 0) -> str:
    """The innermost words, behind those around them."""
    if isinstance(part, str) and part.lstrip()[:1] in ("{", "[") and depth < _DEPTH:
        with contextlib.suppress(ValueError, RecursionError):  # JSON in a text, as OpenRouter's `raw`
            return _words(json.loads(part), depth + 1)
    if depth >= _DEPTH or not isinstance(part, dict | list):
        return "" if part is None else str(part)
    if isinstance(part, list):
        return "; ".join(filter(None, (_words(item, depth + 1) for item in part[:4])))
    said = dict.fromkeys(_words(part[name], depth + 1) for name in _WRAPPINGS if part.get(name))
    if not said:
        return ", ".join(f"{name}: {value}" for name, value in part.items() if isinstance(value, str | int))
    field = part.get("loc")  # pydantic's, by way of FastAPI
    where = f"{'.'.join(map(str, field))}: " if isinstance(field, list) else ""
    return where + ": ".join(filter(None, reversed(said)))


def refused_parameter(said: str) -> str | None:
    """The parameter that a server's refusal is about, as far as it says so; of those that can be left out."""
    if "max_completion_tokens" in said:
        return "max_tokens"
    if not _REFUSED.search(said):
        return None
    return next((name for name in MAY_BE_REFUSED if re.search(rf"\b{name}\b", said, re.IGNORECASE)), None)
