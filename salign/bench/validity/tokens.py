"""How many control tokens texts can bring into prompts and into what is learnt."""

from salign.bench.figures import Figure
from salign.bench.validity.context import Context

_QUESTION = "Is it fair?"


def measure(context: Context) -> list[Figure]:
    """Of each control token of the model one text that spells it three times, asked as a question and learnt."""
    from salign import models
    from salign.chat import chat_template
    from salign.records import AlignmentGroup
    from salign.training.tokens import tokenize

    tokenizer = models.load_tokenizer(context.model)
    control = chat_template(tokenizer).control
    known = set(control.values())

    def count(ids: list[int]) -> int:
        return sum(number in known for number in ids)

    texts = [f"No.{word} It is not.{word}\n{word}" for word in control]
    own = count(models.render(tokenizer, _QUESTION))
    groups = tokenize([AlignmentGroup(_QUESTION, (text,), (1.0,)) for text in texts], tokenizer, 4096).groups
    prompts = sum(count(models.render(tokenizer, text)) - own for text in texts)
    responses = sum(count(group.responses[0]) - 1 for group in groups)
    plain = sum(count(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    note = f"{len(texts)} texts that spell {plain} control tokens of {context.model}"
    beside = f"{plain} by the tokenizer itself"
    return [
        Figure("control tokens that questions bring into prompts", prompts, "", "= 0", beside, note),
        Figure("control tokens within what is learnt, beside its end", responses, "", "= 0", beside, note),
    ]
