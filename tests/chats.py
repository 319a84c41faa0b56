"""Small tokenizers with chat templates of the kinds that are in use, written here."""

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["is", "it", "fair", "to", "the", "th", "an", "swer", "es", "No", "us", "er", "as", "im", "end", "\u010a\u010a"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """A kind of chat: `special` are control tokens by their mark, `named` by the template alone.

    `end` is how a turn ends, `opens` whether a reply begins in a thought, `answer` what goes before an answer.
    """

    template: str | None
    special: tuple[str, ...]
    eos: str
    end: str
    bos: str | None = None
    adds_bos: bool = False
    named: tuple[str, ...] = ()
    has_system: bool = True
    opens: bool = False
    answer: str = ""
    more: dict[str, Any] = field(default_factory=dict)


_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set said = '' %}{% endif %}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today: {{ date_string }}\n\n{{ said }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + m['content'] }}"
    "{% else %}{{ '<\uff5cAssistant\uff5c>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}"
)
_QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + "
    "m['content'] + ('<|return|>' if loop.last else '<|end|>') }}"
    "{% else %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# Passes over a system text without a word, and knows no generation prompt.
_SILENT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|bot|>' + m['content'] + '\\n<|done|>' }}{% endif %}{% endfor %}"
)

KINDS = {
    "chatml": Kind(CHAT_TEMPLATE, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>"),
    "chatml_other_eos": Kind(
        CHAT_TEMPLATE, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>", "<|im_end|>"
    ),
    "gemma": Kind(
        _GEMMA,
        ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        end="<end_of_turn>",
        bos="<bos>",
        adds_bos=True,
        has_system=False,
    ),
    "llama3": Kind(
        _LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|end_of_text|>",
        end="<|eot_id|>",
        bos="<|begin_of_text|>",
        adds_bos=True,
    ),
    "deepseek": Kind(
        _DEEPSEEK,
        ("<\uff5cbos\uff5c>", "<\uff5ceos\uff5c>"),
        eos="<\uff5ceos\uff5c>",
        end="<\uff5ceos\uff5c>",
        bos="<\uff5cbos\uff5c>",
        adds_bos=True,
        named=("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>", "</think>"),
        opens=True,
        answer="\n</think>\n\n",
    ),
    "qwen3": Kind(
        _QWEN3,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        end="<|im_end|>",
        named=("<think>", "</think>"),
        answer="<think>\n\n</think>\n\n",
    ),
    "mistral": Kind(
        _MISTRAL,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        eos="</s>",
        end="</s>",
        bos="<s>",
        adds_bos=True,
        has_system=False,
        more={"metaspace": True},
    ),
    "zephyr": Kind(
        _ZEPHYR, ("<unk>", "<s>", "</s>"), eos="</s>", end="</s>", bos="<s>", adds_bos=True, more={"metaspace": True}
    ),
    "harmony": Kind(
        _HARMONY,
        ("<|endoftext|>", "<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>"),
        eos="<|endoftext|>",
        end="<|return|>",
        answer="<|channel|>final<|message|>",
    ),
    "silent": Kind(
        _SILENT, ("<|user|>", "<|bot|>", "<|done|>", "<|eos|>"), eos="<|eos|>", end="<|done|>", has_system=False
    ),
    "alpaca": Kind(None, ("<s>", "</s>"), eos="</s>", end="</s>", bos="<s>", adds_bos=True),
}


def make_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """A byte-level one, or as SentencePiece's with a space before each text; some merges, no training."""
    if kind.more.get("metaspace"):
        vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3}
        for letter in map(chr, range(33, 127)):
            vocabulary[letter] = len(vocabulary)
        vocabulary["\n"] = len(vocabulary)
        backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", left=1)]
        )
    else:
        vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        merges = []
        for word in WORDS:
            for length in range(2, len(word) + 1):
                if word[:length] not in vocabulary:
                    vocabulary[word[:length]] = len(vocabulary)
                    merges.append((word[: length - 1], word[length - 1]))
        backend = Tokenizer(models.BPE(vocabulary, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in kind.special])
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in kind.named])
    if kind.adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A",
            pair=f"{kind.bos} $A {kind.bos} $B",
            special_tokens=[(kind.bos, backend.token_to_id(kind.bos))],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=kind.eos, bos_token=kind.bos)
    tokenizer.chat_template = kind.template
    return tokenizer
