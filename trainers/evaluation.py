"""pass@k, avg@n and maj@k of the model in training, on held-out prompts, at each evaluation."""

import asyncio
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, set_seed
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import is_conversational

from online_sft.evaluation import GradedPrompt, answer_value, estimates
from online_sft.rewards.answers import final_answer
from online_sft.rewards.checked import RewardFunction, check_dataset, checked, is_async, name_of
from online_sft.rewards.messages import Completion, text_of
from trainers.added_metrics import AddedMetrics
from trainers.engine.sampling import generated, generating, generation_config, own_random_numbers

__all__ = ["SampledEvaluationCallback"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Graded:
    sample: int  # its place among the samples of all prompts, prompt by prompt
    is_correct: bool | None
    answer: Hashable | None


class SampledEvaluationCallback(AddedMetrics):
    """Samples completions of held-out prompts at each evaluation, grades them, and adds the estimates to its metrics.

    `eval_pass@k` and (k > 1) `eval_maj@k` for each of `ks`, `eval_avg@n` (n: `num_generations`), each with the ends of
    a 95 % interval over prompts, `..._low` and `..._high`, and `eval_unscorable`, the share of samples that could not
    be scored (`online_sft.evaluation.estimates`). They are logged, and are among the metrics when the trainer looks for
    `metric_for_best_model="eval_pass@1"`.

        trainer.add_callback(SampledEvaluationCallback(trainer, held_out, MathVerificationReward()))

    It runs whenever the trainer evaluates: `eval_strategy`, `eval_on_start`, `trainer.evaluate()`; of a dict of
    evaluation sets with the first. So the trainer needs an `eval_dataset` of its own, which may be as small as one row.
    Add an `EarlyStoppingCallback`, which looks at the metrics too, after it.

    The random numbers are the same at every evaluation, and none are taken from the training: with and without this
    callback the losses and the parameters are the same to the bit. Batches are cut before they are dealt to processes,
    so that their number changes nothing either; `batch_size` does. The model generates with transformers, also where
    the trainer has vLLM (whose sampling has no seed of its own); one turn, text only, no tools.

    Args:
        trainer: of transformers or TRL; its model and tokenizer are used. The chat template's arguments are those of
            its `chat_template_kwargs`, where it has them.
        dataset: with a `prompt` column, of strings or conversations, and the columns that the reward function needs.
        reward_function: in TRL's signature, sync or async; None for a sample that cannot be scored.
        ks: which k.
        num_generations: samples per prompt, at least the largest k.
        correct_above: a sample with a greater reward is correct.
        answer: the answer in a completion's text, for maj@k; None where there is none. A task without answers that can
            be compared has a maj@k of 0.
        answer_key: what answers that vote together have in common; default: the value.
        temperature: of the sampling.
        top_p: of the sampling.
        max_completion_length: in tokens.
        batch_size: completions generated at a time by each process.
        seed: of the sampling.

    Raises:
        ValueError: when the data lacks a column, the k's do not fit `num_generations`, or the trainer's policy is not
            one that `generate` samples from.
    """

    def __init__(
        self,
        trainer: Trainer,
        dataset: Dataset,
        reward_function: RewardFunction,
        *,
        ks: Sequence[int] = (1, 8),
        num_generations: int = 8,
        correct_above: float = 0.0,
        answer: Callable[[str], Hashable | None] = final_answer,
        answer_key: Callable[[Any], Hashable] = answer_value,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_completion_length: int = 256,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        _check_trainer(trainer)
        super().__init__(trainer, ks, num_generations)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} would draw the same completion each time; choose one above 0")
        if "prompt" not in dataset.column_names or len(dataset) == 0:
            raise ValueError(
                f"the data needs a `prompt` column and a row; it has {len(dataset)} rows of {dataset.column_names}"
            )
        report = check_dataset(reward_function, {name: dataset[name] for name in dataset.column_names})
        if report and trainer.accelerator.is_main_process:
            logger.warning("%d of %d held-out rows cannot be graded: %s", len(report), len(dataset), report[0])
        self.dataset = dataset
        self.reward_function = checked(reward_function, name_of(reward_function))
        self.num_generations, self.correct_above = num_generations, correct_above
        self.answer, self.answer_key = answer, answer_key
        self.batch_size, self.seed = batch_size, seed
        self._sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_completion_length}

    def evaluate(self) -> dict[str, float]:
        """The metrics of the trainer's model as it is. Every process must call it; each gets all of them."""
        samples = len(self.dataset) * self.num_generations
        batches = [range(i, min(i + self.batch_size, samples)) for i in range(0, samples, self.batch_size)]
        mine = _dealt(len(batches), self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes)
        graded: list[_Graded] = []
        with own_random_numbers():
            completions = self._sampled([(number, batches[number]) for number, _ in mine])
            for (number, is_spare), ids in zip(mine, completions, strict=True):
                if not is_spare:
                    set_seed(self._seed_of(number))
                    graded += self._graded(batches[number], ids)
        return self._metrics(sorted(gather_object(graded), key=lambda one: one.sample))

    def _sampled(self, batches: Sequence[tuple[int, range]]) -> list[list[list[int]]]:
        """Token ids of each completion of each batch, up to its first end token."""
        trainer, completions = self.trainer, []
        with generating(trainer) as model:
            config = generation_config(model, trainer.processing_class, self._sampling)
            for number, batch in batches:
                prompt_ids = self._prompt_ids(self._rows(batch)["prompt"])
                set_seed(self._seed_of(number))
                completions.append(generated(model, prompt_ids, config, trainer.accelerator.device))
        return completions

    def _prompt_ids(self, prompts: list[Any]) -> list[list[int]]:
        tokenizer, args = self.trainer.processing_class, self.trainer.args
        if not is_conversational({"prompt": prompts[0]}):
            return tokenizer(text=prompts)["input_ids"]
        settings = (args.chat_template_kwargs or {}) if isinstance(args, GRPOConfig) else {}
        return tokenizer.apply_chat_template(
            conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **settings
        )["input_ids"]

    def _graded(self, batch: range, completion_ids: list[list[int]]) -> list[_Graded]:
        columns = self._rows(batch)
        prompts = columns.pop("prompt")
        texts = self.trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        completions: list[Completion] = list(texts)
        if is_conversational({"prompt": prompts[0]}):
            completions = [[{"role": "assistant", "content": text}] for text in texts]
        rewards = self.reward_function(
            completions,
            prompts=prompts,
            completion_ids=completion_ids,
            trainer_state=self.trainer.state,
            log_extra=_not_logged,
            log_metric=_not_logged,
            **{name: values for name, values in columns.items() if name not in ("completion", "completion_ids")},
        )
        if is_async(self.reward_function):
            rewards = asyncio.run(rewards)
        return [
            _Graded(
                sample, None if reward is None else bool(reward > self.correct_above), self.answer(text_of(completion))
            )
            for sample, reward, completion in zip(batch, rewards, completions, strict=True)
        ]

    def _metrics(self, graded: Sequence[_Graded]) -> dict[str, float]:
        n = self.num_generations
        prompts = [
            GradedPrompt([one.is_correct for one in graded[i : i + n]], [one.answer for one in graded[i : i + n]])
            for i in range(0, len(graded), n)
        ]
        unscorable = sum(one.is_correct is None for one in graded) / len(graded)
        metrics = {"eval_unscorable": unscorable}
        for name, estimate in estimates(prompts, self.ks, answer_key=self.answer_key).items():
            metrics[f"eval_{name}"] = estimate.mean
            metrics |= {f"eval_{name}_low": estimate.low, f"eval_{name}_high": estimate.high}
        return metrics

    def _rows(self, batch: range) -> dict[str, list[Any]]:
        """Columns of the samples' prompts, each row as often as it has samples in the batch."""
        return self.dataset[[sample // self.num_generations for sample in batch]]

    def _seed_of(self, batch: int) -> int:
        """One that no other batch has, and no batch of another `seed`: seed + batch would repeat itself."""
        return int(np.random.SeedSequence([self.seed, batch]).generate_state(1)[0])


def _check_trainer(trainer: Trainer) -> None:
    """Refuses a trainer whose policy is not one that `generate` samples from."""
    if not isinstance(trainer.processing_class, PreTrainedTokenizerBase):
        raise ValueError(f"sampled evaluation needs a tokenizer; got {type(trainer.processing_class).__name__}")
    if isinstance(trainer, GRPOTrainer) and (trainer.tools or trainer.environment_factories):
        raise ValueError("sampled evaluation has one turn and no tools, unlike this trainer's rollouts")


def _dealt(num_batches: int, rank: int, num_ranks: int) -> list[tuple[int, bool]]:
    """(batch, whether it is spare) of a rank. Ranks that share a sharded model must all generate equally often.

    A spare batch is one that another rank has; what it gives is not counted.
    """
    rounds = math.ceil(num_batches / num_ranks)
    turns = [turn * num_ranks + rank for turn in range(rounds)]
    return [(min(turn, num_batches - 1), turn >= num_batches) for turn in turns]


def _not_logged(name: str, value: Any) -> None:
    """Stands for TRL's `log_metric` and `log_extra`, which would log these samples as if they were trained on."""
