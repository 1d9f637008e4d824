"""The policy's weights, brought to a vLLM server that the environments sample from, with proof."""

from typing import Any

from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import get_config_model_id

from trainers.engine.faults import ServerGuard
from trainers.engine.server import check_server
from trainers.engine.weight_sync import WeightSync
from trainers.main_process import on_main_process

__all__ = ["VLLMPolicySync"]


class VLLMPolicySync:
    """TRL's weight transfer; each one is proven.

    Args:
        trainer: a `WeightedSFTTrainer` with `args.atropos_sync_url`.

    Raises:
        ValueError, ConnectionError: of `check_server`, when the trainer is built.
        WeightSyncError, ServerLostError: in training, on every process.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, args = trainer, trainer.args
        config = trainer.model.config
        on_main_process(trainer.accelerator, lambda: check_server(args, config, get_config_model_id(config)))
        trainer.vllm_generation = VLLMGeneration(
            model=trainer.model,
            accelerator=trainer.accelerator,
            processing_class=trainer._tokenizer,
            mode="server",
            server_base_url=args.atropos_sync_url,
            server_timeout=args.atropos_sync_timeout,
            group_port=args.vllm_group_port,
        )
        guard = ServerGuard(trainer)
        self._weight_sync = WeightSync(trainer)
        guard.watch(self._weight_sync, self._weight_sync.expect_proof)

    def sync(self, policy_version: int) -> None:
        """Sends the weights as they are now, and proves it. A collective call, with all processes."""
        self._trainer.vllm_generation.sync_weights()
        metrics = self._trainer._metrics["train"]
        for name, value in self._weight_sync.pop_metrics().items():
            metrics[name] = [value]
