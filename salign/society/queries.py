"""Turns what was said in an interaction into a query to learn from."""

_CRITIQUE = "Comment on the response to the question below: say what is good about it and what should change."
_ARGUE = "Say which answer to the question below is the best, and why."
_COMMENT = "Write a comment on the post in the input."
_REVISE = "Revise the draft in the input so that it meets the feedback."


def with_input(instruction: str, given: str) -> str:
    """An instruction and what it is about."""
    return f"{instruction}\n\nInput:\n{given}"


def argument(question: str, answers: list[str]) -> str:
    """The query to which a voter's reason is the answer; `answers` are candidates that the question does not list."""
    listed = "\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, start=1))
    return with_input(f"{_ARGUE}\nQuestion: {question}", listed) if answers else f"{_ARGUE}\nQuestion: {question}"


def comment(post: str) -> str:
    """The query to which a comment is the answer."""
    return with_input(_COMMENT, post)


def self_critic(question: str, draft: str) -> str:
    """The query of the self-critic kind; the answer to it is an audience member's reason."""
    return with_input(f"{_CRITIQUE}\nQuestion: {question}", draft)


def realignment(question: str, draft: str, reasons: list[str]) -> str:
    """The query of the realignment kind; the answer to it is the revision."""
    listed = "\n".join(f"- {reason}" for reason in reasons)
    return with_input(f"{_REVISE}\nQuestion: {question}\nDraft: {draft}", f"Feedback:\n{listed}")
