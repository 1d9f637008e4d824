"""A reward model, which scores a text with one or two logits, as a reward function.

torch is imported where it is used: the worker processes of other rewards import this package under a memory limit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from online_sft.rewards.messages import Completion

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["NeuralRewardModel"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NeuralRewardModel:
    """A sequence classifier as a reward function in TRL's signature: score(prompt + completion), one float per row.

    One label: score = l_0. Two labels: score = l_1 - l_0, the log-odds of label 1. With `use_sigmoid`, sigmoid(score),
    which is softmax(l)[1] where there are two.

    The text is tokenised as TRL's RewardTrainer does: a chat by the tokenizer's own chat template, plain text followed
    by the tokenizer's EOS unless it ends in it. A plain completion that the policy did not finish gets no EOS: its last
    token is in `completion_ids` and not among `policy_eos_token_ids`. Where either is not known, every completion
    counts as finished, like those that reward models are trained on. A chat template closes unfinished answers, too.

    The score is the model's own on the unpadded row, whatever else is in the batch. Its head reads it at the last token
    that is not `config.pad_token_id`; padding is on the right with that token, whatever the tokenizer's is, because
    another one would move the reading. If it is the EOS, the head reads the token before the EOS, which is where
    RewardTrainer trained it. Without one the head reads the very last token, and rows are scored one at a time.

    Args:
        model: its logits are [B, 1] or [B, 2], and it has a `config`. Called in eval mode, without gradients.
        tokenizer: the model's own.
        use_sigmoid: rewards between 0 and 1.
        max_length: tokens of prompt and completion; of longer texts the beginning is cut, since the score is read at
            the end, but for a BOS or CLS token. None: as many as model and tokenizer say they can take.
        batch_size: rows in one forward pass.
        name: in metrics and errors; else the last part of the model's id or path.
        policy_eos_token_ids: what a finished completion ends in. `OnlineSFTTrainer` sets it.
        device: of the inputs; None: that of the first parameter.
        config: None: `model.config`.

    Raises:
        ValueError: for other numbers of labels, for a `max_length` below 2 and a `batch_size` below 1; when called, for
            a chat without a chat template, for logits of another shape, and for a score that is not finite.
    """

    model: nn.Module
    tokenizer: Any
    use_sigmoid: bool = False
    max_length: int | None = None
    batch_size: int = 16
    name: str = ""
    policy_eos_token_ids: Collection[int] = ()
    device: torch.device | None = None
    config: Any = None

    def __post_init__(self) -> None:
        if self.config is None:
            object.__setattr__(self, "config", self.model.config)
        if self.config.num_labels not in (1, 2):
            raise ValueError(
                f"reward model {self.__name__!r} has {self.config.num_labels} labels, which make no single score; "
                "it must have one (a reward) or two (bad, good)"
            )
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens; got {self.max_length}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        if self.config.get_text_config().pad_token_id is None and self.batch_size > 1:
            logger.warning(
                "reward model %r has no config.pad_token_id, so its rows are scored one at a time; to batch them, set "
                "it to a token that no text ends in",
                self.__name__,
            )

    @property
    def __name__(self) -> str:  # TRL names the metric `rewards/<__name__>`
        path = getattr(self.config, "_name_or_path", "")
        return self.name or path.rstrip("/").split("/")[-1] or type(self.model).__name__

    def __call__(
        self,
        prompts: Sequence[Completion],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One score per row. Logs the share of texts that were `truncated`."""
        import torch

        finished = [True] * len(completions)
        if completion_ids is not None and self.policy_eos_token_ids:
            finished = [bool(ids) and ids[-1] in self.policy_eos_token_ids for ids in completion_ids]
        whole = [self._tokens(*row) for row in zip(prompts, completions, finished, strict=True)]
        limit = self._limit()
        if log_metric and whole:
            log_metric(f"{self.__name__}/truncated", sum(len(ids) > limit for ids in whole) / len(whole))
        rows = [self._truncated(ids, limit) for ids in whole]
        self.model.eval()
        with torch.no_grad():
            scores = [score for batch in self._batches(rows) for score in self._scores(batch).tolist()]
        for row, score in enumerate(scores):
            if not abs(score) < float("inf"):
                raise ValueError(f"reward model {self.__name__!r} gave row {row} of {len(rows)} the score {score}")
        return scores

    def placed(
        self,
        prepare: Callable[[nn.Module], nn.Module],
        device: torch.device,
        policy_eos_token_ids: Collection[int] = (),
    ) -> NeuralRewardModel:
        """The same with its model moved or wrapped by `prepare`, inputs on `device`; own EOS ids of the policy stay."""
        known = self.policy_eos_token_ids or policy_eos_token_ids
        return replace(self, model=prepare(self.model), device=device, policy_eos_token_ids=known, name=self.__name__)

    def _tokens(self, prompt: Any, completion: Any, is_finished: bool) -> list[int]:
        if isinstance(prompt, str):
            eos = self.tokenizer.eos_token
            ends = completion + eos if is_finished and eos and not completion.endswith(eos) else completion
            return self.tokenizer(text=prompt + ends)["input_ids"]
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the prompts are chats, and the tokenizer of reward model {self.__name__!r} has no chat template; "
                "set tokenizer.chat_template to the one that the model was trained with"
            )
        return self.tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=True)["input_ids"]

    def _limit(self) -> int:
        if self.max_length is not None:
            return self.max_length
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)

    def _truncated(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        first = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id} - {None}
        kept = 1 if ids[0] in first else 0
        return ids[:kept] + ids[len(ids) - limit + kept :]

    def _batches(self, rows: list[list[int]]) -> Iterator[list[list[int]]]:
        """As many batches as any other process makes of as many rows: sharded models wait for each other in each."""
        size = self.batch_size if self.config.get_text_config().pad_token_id is not None else 1
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _scores(self, rows: list[list[int]]) -> torch.Tensor:
        """[B] float32."""
        import torch

        device = self.device or next(self.model.parameters()).device
        lengths = torch.tensor([len(ids) for ids in rows])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        pad = self.config.get_text_config().pad_token_id or 0  # without one there is one row, and nothing to pad
        input_ids = torch.full(mask.shape, pad)
        input_ids[mask] = torch.tensor([token for ids in rows for token in ids])
        logits = self.model(input_ids=input_ids.to(device), attention_mask=mask.long().to(device)).logits.float()
        if logits.shape != (len(rows), self.config.num_labels):
            raise ValueError(
                f"reward model {self.__name__!r} returned logits of shape {list(logits.shape)}; expected "
                f"{[len(rows), self.config.num_labels]}: a sequence classifier's"
            )
        score = logits[:, 0] if self.config.num_labels == 1 else logits[:, 1] - logits[:, 0]
        return score.sigmoid() if self.use_sigmoid else score
