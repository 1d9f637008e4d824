"""Rollouts of a trainer that does not generate while it trains: the engines are those of online SFT."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers.generation import ContinuousBatchingConfig
from trl.generation.vllm_generation import VLLMGeneration

from trainers.engine.checks import check_engine
from trainers.engine.colocated import in_dtype_of_the_policy
from trainers.engine.faults import ServerGuard
from trainers.engine.rollouts import RolloutEngine, synced
from trainers.engine.sampling import generated, generating, generation_config
from trainers.engine.weight_sync import WeightSync

__all__ = ["PolicyRollouts"]


class PolicyRollouts:
    """`synced()` is `OnlineSFTTrainer.synced_rollouts` of any trainer whose arguments are `SamplingOptions`.

    With vLLM, weights are sent and proven as in online SFT. Without, transformers generates, in batches or with its
    continuous batching.

    Args:
        trainer: of transformers.
        tokenize: a conversation as the token ids that the policy answers.

    Raises:
        ValueError, ConnectionError: of `check_engine`.
    """

    def __init__(self, trainer: Any, tokenize: Callable[[Any], list[int]]) -> None:
        self._trainer, self._tokenize = trainer, tokenize
        self._sampling = {
            "temperature": trainer.args.sampling_temperature,
            "top_p": trainer.args.sampling_top_p,
            "max_new_tokens": trainer.args.max_completion_length,
        }
        self.weight_sync: WeightSync | None = None
        if trainer.args.use_vllm:
            self._start_vllm()

    @contextmanager
    def synced(self) -> Iterator[RolloutEngine]:
        """In the body the engine has the policy's weights. A collective call, with all processes."""
        trainer = self._trainer
        tokenizer, step = trainer.processing_class, trainer.state.global_step
        if self.weight_sync is not None:
            with synced(trainer.vllm_generation):
                yield RolloutEngine(self._tokenized, self._sample_with_vllm, tokenizer, step)
            return
        with generating(trainer) as model:
            sample = self._sample_continuously if trainer.args.use_transformers_continuous_batching else self._sample
            yield RolloutEngine(self._tokenized, partial(sample, model), tokenizer, step)

    def _tokenized(self, prompts: list[Any]) -> list[list[int]]:
        return [self._tokenize(prompt) for prompt in prompts]

    def _sample(self, model: Any, prompt_ids: list[list[int]], num_generations: int) -> tuple[list[list[int]], None]:
        config = generation_config(model, self._trainer.processing_class, self._sampling)
        return generated(model, prompt_ids, config, self._trainer.accelerator.device), None

    def _sample_continuously(
        self, model: Any, prompt_ids: list[list[int]], num_generations: int
    ) -> tuple[list[list[int]], None]:
        config = generation_config(model, self._trainer.processing_class, self._sampling)
        settings = {
            "max_memory_percent": 0.5,  # half of the memory is the training's, as in TRL
            "auto_switch_to_flash": model.dtype != torch.float32,  # which it does not compute
            **(self._trainer.args.transformers_continuous_batching_config or {}),
        }
        with _without_autocast(model):
            outputs = model.generate_batch(
                prompt_ids,
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(**settings),
                progress_bar=False,
            ).values()
        answered = [output.generated_tokens for output in outputs if output.error is None]
        if len(answered) < len(prompt_ids):
            errors = [output.error for output in outputs if output.error is not None]
            raise RuntimeError(
                f"continuous batching has answered {len(answered)} of {len(prompt_ids)} prompts: "
                f"{errors[0] if errors else 'its thread has ended'}; the longest has {max(map(len, prompt_ids))} "
                "tokens, for which transformers_continuous_batching_config may be too small (num_blocks)"
            )
        return answered, None

    def _sample_with_vllm(
        self, prompt_ids: list[list[int]], num_generations: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        _, completion_ids, log_probs, _ = self._trainer.vllm_generation.generate(
            prompts=prompt_ids, images=None, num_generations=num_generations, profiler=nullcontext()
        )
        return completion_ids, [[of_token[0] for of_token in of_completion] for of_completion in log_probs]

    def _start_vllm(self) -> None:
        trainer, args = self._trainer, self._trainer.args
        check_engine(args, trainer.model)
        with in_dtype_of_the_policy(trainer, args):
            trainer.vllm_generation = VLLMGeneration(
                model=trainer.model,
                accelerator=trainer.accelerator,
                processing_class=trainer.processing_class,
                mode=args.vllm_mode,
                server_base_url=args.vllm_server_base_url,
                server_timeout=args.vllm_server_timeout,
                group_port=args.vllm_group_port,
                tensor_parallel_size=args.vllm_tensor_parallel_size,
                gpu_memory_utilization=args.vllm_gpu_memory_utilization,
                max_model_length=args.vllm_max_model_length,
                max_num_seqs=args.num_environments * args.vllm_tensor_parallel_size,
                trust_remote_code=args.trust_remote_code,
                temperature=args.sampling_temperature,
                top_p=args.sampling_top_p,
                max_completion_length=args.max_completion_length,
                logprobs=0,
            )
        guard = ServerGuard(trainer) if args.vllm_mode == "server" else None
        self.weight_sync = WeightSync(trainer)
        if guard is not None:
            guard.watch(self.weight_sync, self.weight_sync.expect_proof)


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Continuous batching keeps keys and values in the dtype of the parameters; autocast would make others."""
    prepared, original = vars(model).get("forward"), vars(model).get("_original_forward")
    if original is None:
        yield
        return
    model.forward = original  # before Accelerate prepared it
    try:
        yield
    finally:
        model.forward = prepared
