"""A model as lm_eval asks it: the answers to one question share a row, so that the question is computed once."""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from salign import architecture
from salign.chat import chat_template
from salign.config import SFTObjective
from salign.errors import ConfigError, DataError
from salign.evaluation.resume import Score, Scores
from salign.training.attention import mask_of
from salign.training.distributed import Ranks
from salign.training.model import GroupLoss, check_layout
from salign.training.packing import Lengths, lay_out
from salign.training.tokens import TokenGroup

logger = logging.getLogger(__name__)

Pair = tuple[tuple[str, str], list[int], list[int]]


class RowLM(TemplateLM):  # type: ignore[misc] # lm_eval has no types
    """The model that lm_eval measures its tasks on.

    A row holds one document's question and answers and nothing else, whatever the ranks: figures are the same for any
    number of them.

    Args:
        model: On the device where it is to run, in evaluation mode.
        tokenizer: With its chat template.
        ranks: This process among those that share the documents.
        told: Called after each document.
        scores: What was measured before, and where more is recorded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ranks: Ranks,
        *,
        told: Callable[[], None],
        scores: Scores,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._template = chat_template(tokenizer)
        self._rendered: set[str] = set()
        self.model = model
        self._rank, self._world_size, self._device = ranks.rank, ranks.size, ranks.device
        self._told = told
        self.scores = scores
        config = model.config.get_text_config()
        self._max_tokens = architecture.max_positions(config) or 1 << 30
        self._max_together = architecture.longrope_switch(config) or 1 << 30
        reaches = architecture.reaches(config).values()
        beyond = max((reach.window or reach.chunk or 0 for reach in reaches), default=0) + 32
        try:
            lengths = Lengths(min(beyond, self._max_tokens), 0)
            check_layout(GroupLoss(model, SFTObjective(kind="sft")), model, lengths, ranks.device)
            self.shares_rows = True
        except ConfigError:
            logger.info("models of the family %s are run with one answer per row", model.config.model_type)
            self.shares_rows = False

    # --- what the tasks ask ----------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Returns each answer's log-likelihood after its question, and whether greedy decoding would give it."""
        found: list[tuple[float, bool]] = []
        for _, document in itertools.groupby(requests, key=lambda request: (request.task_name, request.doc_id)):
            found += super().loglikelihood(list(document), disable_tqdm=True)
            self._told()
        return found

    def _loglikelihood_tokens(self, requests: list[Pair], **_: Any) -> list[tuple[float, bool]]:
        """One document's; ranks with fewer documents repeat an answer, which is looked up."""
        distinct = list(dict.fromkeys((tuple(context), tuple(answer)) for _, context, answer in requests))
        known = {pair: score for pair in distinct if (score := self.scores.find(*pair)) is not None}
        values: dict[tuple[tuple[int, ...], tuple[int, ...]], Score] = dict(known)
        for context, pairs in itertools.groupby((pair for pair in distinct if pair not in known), lambda pair: pair[0]):
            answers = [answer for _, answer in pairs]
            together = self.shares_rows and len(context) + max(map(len, answers)) <= self._max_together
            rows = [answers] if together else [[answer] for answer in answers]
            measured = itertools.chain.from_iterable(self.measure(context, row) for row in rows)
            for answer, score in zip(answers, measured, strict=True):
                values[context, answer] = score
                self.scores.note(context, answer, score)
        return [values[tuple(context), tuple(answer)] for _, context, answer in requests]

    @torch.inference_mode()
    def measure(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        longest = len(context) + max(map(len, answers))
        if longest > self._max_tokens:
            raise DataError(
                f"a benchmark's question and answer have {longest} tokens; the model's limit is {self._max_tokens}"
            )
        row = lay_out([TokenGroup(list(context), [list(answer) for answer in answers], [0.0] * len(answers))])
        row = row.to(self.device)
        inputs: dict[str, Any] = {"input_ids": row.input_ids, "use_cache": False}
        if self.shares_rows:
            inputs |= {**mask_of(self.model, row), "position_ids": row.position_ids}
        logits = self.model(**inputs, logits_to_keep=row.predictors).logits[0].float()
        logp = -F.cross_entropy(logits, row.targets, reduction="none").double()
        greedy = (logits.argmax(dim=-1) == row.targets).double()
        sums = logp.new_zeros(len(answers)).index_add(0, row.response_of, logp)
        hits = greedy.new_zeros(len(answers)).index_add(0, row.response_of, greedy)
        lengths = [len(answer) for answer in answers]
        return [
            (total, hit == length) for total, hit, length in zip(sums.tolist(), hits.tolist(), lengths, strict=True)
        ]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        raise NotImplementedError  # `tasks.load_task` refuses tasks that ask for it

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        raise NotImplementedError

    # --- words -----------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        assert isinstance(self.tokenizer.eos_token_id, int)
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return bos if isinstance(bos, int) else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encodes a text of lm_eval's, in which nothing is a control token, with the tokenizer's begin token."""
        begins = self._template.adds_bos and add_special_tokens is not False
        ids = self._template.encode([self._template.mark(string)])[0]
        return [self.prefix_token_id, *ids] if begins else ids

    def num_tokens(self, answer: str) -> int:
        """Returns the number of tokens of an answer as it stands in the template."""
        return len(self._template.encode([self._template.mark(answer)])[0])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """What stands in the template is encoded as in training: the question by itself, and so the answer."""
        if context not in self._rendered:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        question, answer = self._template.encode([context, self._template.mark(continuation)])
        return question, answer

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The marked text (see `ChatTemplate`) up to where the answer begins, or to the end of what is begun of it."""
        if add_generation_prompt:
            text = self._template.prompts([chat_history], answer=True)[0]
        else:
            text = self._template.continued(chat_history)
        self._rendered.add(text)
        return text

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    # --- ranks -----------------------------------------------------------------------------------

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return tensor
        parts = [torch.zeros_like(tensor.reshape(1)) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.reshape(1))
        return torch.cat(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self.world_size == 1:
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()
