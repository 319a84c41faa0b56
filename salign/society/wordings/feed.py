"""What a reader of a feed is shown and asked."""

import functools
from collections.abc import Sequence

from salign.society.frames import frame

ACTIONS = ("post", "comment", "like", "repost", "follow", "unfollow", "nothing")
"""In the order of their numbers, which begin with 1."""
ACTIONS_ALONE = ("post", "nothing")
"""Where there is nothing to read."""
ON_ANOTHER = ("comment", "like", "repost", "follow", "unfollow")
"""Those that are done to a post, or to its author."""

_FEED = """\
You read these posts of others, each between the marks {key}:
{posts}

"""
_ACTIONS = """\
What do you do? 1: write a post of your own. 2: comment on a post. 3: like a post. 4: repost a post, so that those who \
follow you read it. 5: follow the author of a post. 6: unfollow the author of a post. 7: nothing."""
_ACTIONS_ALONE = """\
You have nothing to read. What do you do? 1: write a post of your own. 2: nothing."""
_GIVE = """\
Give the number, from 1 to {num}."""
_WHICH = """\
You choose to {action}. Which post is it? Give its number, from 1 to {num}."""
_WRITE_POST = """\
Write a post about this question, in one to three sentences: {question}"""
_WRITE_COMMENT = """\
Write a comment on the post with the number {number}, in one or two sentences."""
_FORM = """\

Reply in the form "Rating: <1 to {num}> Reason: <one sentence>"."""

TEXTS = (_ACTIONS, _WHICH, _WRITE_POST, _WRITE_COMMENT)


def feed(posts: Sequence[tuple[int, str]], key: str) -> str:
    """What a reader is shown: posts, each with its author's number."""
    if not posts:
        return ""
    listed = (f"{number}. By agent {author}:\n{frame(text, key)}" for number, (author, text) in enumerate(posts, 1))
    return _FEED.format(key=key, posts="\n".join(listed))


@functools.cache  # of few numbers
def what(num_posts: int, *, in_words: bool) -> tuple[str, int]:
    """Asks what a reader does; and of how many actions."""
    ask, num = (_ACTIONS, len(ACTIONS)) if num_posts else (_ACTIONS_ALONE, len(ACTIONS_ALONE))
    return f"{ask} {_GIVE.format(num=num)}{_FORM.format(num=num) if in_words else ''}", num


@functools.cache
def which(action: str, num_posts: int, *, in_words: bool) -> str:
    """Asks for the post to which an action is done."""
    ask = _WHICH.format(action=action, num=num_posts)
    return ask + _FORM.format(num=num_posts) if in_words else ask


def write(question: str, number: int | None) -> str:
    """Asks for a post about a question, or for a comment on the post of a number."""
    return _WRITE_POST.format(question=question) if number is None else _WRITE_COMMENT.format(number=number)


def action_of(number: int, num_posts: int) -> str:
    """The action of a number, counted from 1."""
    return (ACTIONS if num_posts else ACTIONS_ALONE)[number - 1]
