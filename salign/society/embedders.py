"""How two questions are compared: texts as vectors, whose product is their cosine similarity."""

import asyncio
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from salign.config import Embedder, HashingEmbedder, OpenAIEmbedder, TransformersEmbedder
from salign.errors import CallRejectedError, ConfigError, EngineError
from salign.models import quiet_transformers, resolve

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from salign.engines.http import Server

_WORD = re.compile(r"\w+")

_TEXTS_PER_FORWARD = 32
_TEXTS_PER_CALL = 256
# 20,000 numbers of 25 characters; the longest vectors in use have 8,192.
_MOST_BYTES_OF_VECTOR = 500_000


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


class _Vector(BaseModel):
    index: int
    embedding: list[float]


class _Answer(BaseModel):
    data: list[_Vector]


def _of_server(section: OpenAIEmbedder, texts: Sequence[str]) -> NDArray[np.float64]:
    # In a thread of its own: the caller may be within a running event loop.
    with ThreadPoolExecutor(1) as thread:
        vectors = thread.submit(asyncio.run, _ask(section, texts)).result()
    if len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
        raise EngineError(
            f"the embeddings of {_name(section)} differ in length; is a single model behind this address?"
        )
    found = np.asarray(vectors)
    if not np.isfinite(found).all():
        raise EngineError(f"the embeddings of {_name(section)} are not all finite numbers.")
    return found


def _name(section: OpenAIEmbedder) -> str:
    return f"{section.model} at {section.base_url} (society.embedder)"


async def _ask(section: OpenAIEmbedder, texts: Sequence[str]) -> list[list[float]]:
    from salign.engines.http import Server

    server = Server(section, _name(section), setting="society.embedder")
    vectors: list[list[float]] = []
    try:
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            vectors += await _ask_once(server, section, texts[start : start + _TEXTS_PER_CALL])
    finally:
        await server.close()
    return vectors


async def _ask_once(server: "Server", section: OpenAIEmbedder, texts: Sequence[str]) -> list[list[float]]:
    request = {"model": section.model, "input": list(texts), "encoding_format": "float"}
    body = json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")  # half of an emoji
    try:
        said = await server.ask("POST", "embeddings", body, len(texts) * _MOST_BYTES_OF_VECTOR)
    except CallRejectedError as error:
        raise ConfigError(
            f"{str(error).rstrip('.')}. Check base_url, and that the model is one for embeddings and reads texts as "
            "long as the questions."
        ) from error
    try:
        answer = _Answer.model_validate_json(said)
    except ValidationError:
        raise EngineError(
            f"{_name(section)} answered with something other than a list of embeddings: {server.short(said)!r}. Is "
            "base_url the root of an OpenAI-compatible API (it usually ends in /v1), and the model one for embeddings?"
        ) from None
    by_index = sorted(answer.data, key=lambda vector: vector.index)
    if [vector.index for vector in by_index] != list(range(len(texts))):
        raise EngineError(f"{_name(section)} gave {len(by_index)} embeddings, not one for each of {len(texts)} texts.")
    return [vector.embedding for vector in by_index]


EMBEDDERS: dict[type, Callable[[Any, Sequence[str]], "csr_matrix | NDArray[np.float32]"]] = {
    HashingEmbedder: _hashed,
    TransformersEmbedder: _of_length_1(_of_model),
    OpenAIEmbedder: _of_length_1(_of_server),
}
"""What embeds texts, by the section of its kind."""
