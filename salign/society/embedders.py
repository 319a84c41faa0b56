"""How two questions are compared: texts as vectors, whose product is their cosine similarity."""

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from salign.config import Embedder, HashingEmbedder, OpenAIEmbedder, TransformersEmbedder
from salign.errors import ConfigError, EngineError, SalignError
from salign.models import quiet_transformers, resolve
from salign.shown import redact

if TYPE_CHECKING:
    import openai
    from scipy.sparse import csr_matrix
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORD = re.compile(r"\w+")

_TEXTS_PER_FORWARD = 32
_TEXTS_PER_CALL = 256


def embed(section: Embedder, texts: Sequence[str]) -> "csr_matrix | NDArray[np.float32]":
    """Each text as a row of length 1; a text without any word as a row of zeros, similar to nothing.

    Returns:
        [texts, features]: sparse (float64) from `hashing`, dense from the others. Dense similarities are good to about
        six decimals.

    Raises:
        ConfigError: The model cannot be had, or the server refuses the key or the model.
        EngineError: The server fails, or answers with something that is no embedding.
    """
    return EMBEDDERS[type(section)](section, texts)


def _of_length_1(found_by: Callable[[Any, Sequence[str]], NDArray[np.float64]]) -> Callable[..., NDArray[np.float32]]:
    """Asks for the vectors of texts with words, and scales them."""

    def rows_of(section: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
        with_words = [number for number, text in enumerate(texts) if _WORD.search(text)]
        asked = [texts[number] for number in with_words]
        if not asked:
            return np.zeros((len(texts), 0), dtype=np.float32)
        found = found_by(section, asked)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        rows = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
        rows[with_words] = found / np.where(lengths > 0, lengths, 1)
        return rows

    return rows_of


# --- hashing -------------------------------------------------------------------------------------


def _hashed(section: HashingEmbedder, texts: Sequence[str]) -> "csr_matrix":
    """Counts of words and word pairs, each in the column that its hash names.

    scikit-learn's HashingVectorizer does the same; its import takes longer than a shard may take to start.
    """
    from scipy.sparse import csr_matrix

    @functools.cache  # most words and many pairs come again
    def column(part: str) -> int:
        digest = hashlib.blake2b(part.encode("utf-8", "replace"), digest_size=8).digest()
        return int.from_bytes(digest) % section.num_features

    columns: list[int] = []
    ends = [0]
    for text in texts:
        words = _WORD.findall(text.lower())
        pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
        columns += map(column, (*words, *pairs))
        ends.append(len(columns))
    rows = csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(texts), section.num_features))
    rows.sum_duplicates()
    lengths = np.sqrt(rows.power(2).sum(axis=1)).A1
    rows.data /= np.repeat(lengths, np.diff(rows.indptr))  # a row of zeros has no data to divide
    return rows


# --- a model in this process ---------------------------------------------------------------------


def _of_model(section: TransformersEmbedder, texts: Sequence[str]) -> NDArray[np.float64]:
    """The mean of the last hidden states over a text's tokens, with those that the model's tokenizer puts around it.

    That is how most sentence models are trained. What is longer than the model can read is cut at its end.
    """
    import torch

    tokenizer, model = _load(section)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    # What spells a control token in a text is plain text.
    encoded = tokenizer(list(texts), truncation=True, max_length=limit, split_special_tokens=True)
    tokens: list[list[int]] = encoded["input_ids"]
    order = sorted(range(len(texts)), key=lambda number: len(tokens[number]))  # little is padded in a batch of equals
    found = np.zeros((len(texts), model.config.hidden_size))
    for start in range(0, len(order), _TEXTS_PER_FORWARD):
        batch = order[start : start + _TEXTS_PER_FORWARD]
        longest = max(1, len(tokens[batch[-1]]))
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(batch):
            ids[row, : len(tokens[number])] = torch.tensor(tokens[number], dtype=torch.long)
            mask[row, : len(tokens[number])] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            sums = (states * mask.unsqueeze(-1)).sum(1)
        found[batch] = (sums / mask.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()
    return found


def _load(section: TransformersEmbedder) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    """Tokenizer and model without a head, from safetensors, in float32 on its device."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    quiet_transformers()
    resolved = resolve(section.model)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolved, trust_remote_code=False)
        loading: Any = AutoModel.from_pretrained(
            resolved, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # whatever a damaged file leads a model to
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
        raise ConfigError(
            f"society.embedder.model {section.model} does not load: {lines[-1].rstrip('.')}. It must be a model "
            "with a tokenizer and safetensors weights, in a local folder or on the hub."
        ) from error
    model: PreTrainedModel = loading[0]
    # A pooler lies behind the last hidden states.
    missing = sorted(key for key in map(str, loading[1]["missing_keys"]) if not key.startswith("pooler."))
    if missing:
        raise ConfigError(
            f"society.embedder.model {section.model} does not load: {len(missing)} of its weights are missing, such as "
            f"{missing[0]}."
        )
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"society.embedder.model {section.model} is an encoder-decoder model; use an encoder or a decoder alone."
        )
    device = section.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.to(torch.device(device))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"society.embedder.device {section.device!r} cannot be used here: {error}") from error
    return tokenizer, model.eval()


# --- a server ------------------------------------------------------------------------------------


# What is read of an answer. The client takes what the server sends without a check, so it is checked here.
class _Vector(BaseModel):
    index: int
    embedding: list[float]


class _Answer(BaseModel):
    data: list[_Vector]


def _of_server(section: OpenAIEmbedder, texts: Sequence[str]) -> NDArray[np.float64]:
    import openai

    from salign.engines.http import is_loopback

    key = os.environ.get(section.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in {section.api_key_env} contains characters that are not allowed in a key "
            "(such as a line break); set it again."
        )
    vectors: list[list[float]] = []
    with openai.OpenAI(
        base_url=section.base_url,
        api_key=key or "none",  # a local server asks for none, and the client refuses to be made without one
        timeout=section.timeout_s,
        max_retries=section.num_retries,
        # The client would ask a proxy of the environment for this machine too.
        http_client=openai.DefaultHttpxClient(trust_env=False) if is_loopback(section.base_url) else None,
    ) as client:
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            vectors += _call(client, section, texts[start : start + _TEXTS_PER_CALL])
    if len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
        raise EngineError(
            f"the embeddings of {_server(section)} differ in length; is a single model behind this address?"
        )
    found = np.asarray(vectors)
    if not np.isfinite(found).all():
        raise EngineError(f"the embeddings of {_server(section)} are not all finite numbers.")
    return found


def _server(section: OpenAIEmbedder) -> str:
    return f"{section.model} at {section.base_url} (society.embedder)"


def _call(client: "openai.OpenAI", section: OpenAIEmbedder, texts: Sequence[str]) -> list[list[float]]:
    import openai

    try:
        # Asked for none, the client asks for base64, which not every server speaks.
        sent = client.embeddings.create(model=section.model, input=list(texts), encoding_format="float")
    except (openai.OpenAIError, ValueError) as error:
        raise _failure(error, section) from error
    try:
        answer = _Answer.model_validate(sent.model_dump(warnings=False))
    except (AttributeError, ValidationError):
        raise EngineError(
            f"{_server(section)} answered with something other than a list of embeddings: "
            f"{_short(sent, section)!r}. Is "
            "base_url the root of an OpenAI-compatible API (it usually ends in /v1), and the model one for embeddings?"
        ) from None
    by_index = sorted(answer.data, key=lambda vector: vector.index)
    if [vector.index for vector in by_index] != list(range(len(texts))):
        raise EngineError(
            f"{_server(section)} gave {len(by_index)} embeddings, not one for each of {len(texts)} texts."
        )
    return [vector.embedding for vector in by_index]


def _short(said: object, section: OpenAIEmbedder) -> str:
    """What a server says, on one line, without the key if it says that too."""
    text = " ".join(str(said).split())
    key = os.environ.get(section.api_key_env, "").strip()
    return redact(text.replace(key, f"<{section.api_key_env}>") if key else text)[:300]


def _failure(error: Exception, section: OpenAIEmbedder) -> SalignError:
    import openai

    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return ConfigError(
            f"{_server(section)} refuses the key (HTTP {error.status_code}). Put a valid one into the environment "
            f"variable {section.api_key_env} (society.embedder.api_key_env names it)."
        )
    if isinstance(error, openai.NotFoundError | openai.BadRequestError):
        return ConfigError(
            f"{_server(section)} refuses: {_short(error, section)}. Check base_url, and that the model is one for "
            "embeddings and reads texts as long as the questions."
        )
    if isinstance(error, openai.APITimeoutError):
        return EngineError(
            f"{_server(section)} did not answer within timeout_s = {section.timeout_s:g} s, {section.num_retries + 1} "
            "times. Is it overloaded? Raise society.embedder.timeout_s."
        )
    if isinstance(error, openai.APIConnectionError):
        return EngineError(
            f"{_server(section)} is unreachable ({_short(error.__cause__ or error, section)}), "
            f"{section.num_retries + 1} times. Start it, or set society.embedder.base_url to where it listens."
        )
    return EngineError(f"{_server(section)} failed after {section.num_retries} retries: {_short(error, section)}")


EMBEDDERS: dict[type, Callable[[Any, Sequence[str]], "csr_matrix | NDArray[np.float32]"]] = {
    HashingEmbedder: _hashed,
    TransformersEmbedder: _of_length_1(_of_model),
    OpenAIEmbedder: _of_length_1(_of_server),
}
"""What embeds texts, by the section of its kind."""
