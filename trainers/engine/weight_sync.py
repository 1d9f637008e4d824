"""Weight sync with proof: after it, the engine computes what the policy computes, or the run stops."""

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from peft import PeftModel
from torch import Tensor
from trl import GRPOTrainer

from trainers.checkpoints.within_step import save_resumable
from trainers.engine.dtypes import TOLERANCES, compute_dtype, name_of
from trainers.engine.exact_merge import merged_without_trace
from trainers.engine.faults import ServerLostError
from trainers.engine.probe import engine_log_probs, policy_log_probs, probe_sequences
from trainers.engine.suspects import explanation
from trainers.main_process import on_main_process
from trainers.whole_weights import is_sharded

__all__ = ["WeightSync", "WeightSyncError"]

logger = logging.getLogger(__name__)

_LARGE_SHARE = 0.2  # of the time, spent in syncs
# An engine whose scores stay the same to the bit while the policy's move by this share of the tolerance is stale.
_SHARE_OF_TOLERANCE = 0.1


class WeightSyncError(RuntimeError):
    """The engine does not compute what the policy computes."""


class WeightSync:
    """`VLLMGeneration.sync_weights`, timed and followed by the probe; takes its place in the trainer's engine.

    Proof: policy and engine score the same texts (`trainers.engine.probe`). `weight_sync/probe_max_dlogp` is the
    largest difference of a token's log-prob, in nats, over all processes. The run stops above the tolerance, and also,
    whatever the tolerance, when the engine's scores have stayed the same to the bit while the policy's have moved by a
    tenth of it.

    Args:
        trainer: with `vllm_generation`, and an `OnlineSFTConfig`.

    Raises:
        WeightSyncError: from the sync, on every process.
    """

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer, self._generation = trainer, trainer.vllm_generation
        self._deliver, self._params = self._generation.sync_weights, self._generation._iter_named_params
        self._generation.sync_weights, self._generation._iter_named_params = self, self._counted_params
        self._sequences = probe_sequences(trainer._tokenizer) if trainer.args.weight_sync_probe_every else []
        self._dtypes = [compute_dtype(trainer.args, trainer.model), self._engine_dtype()]
        self.tolerance = trainer.args.weight_sync_tolerance
        if self.tolerance is None:
            if self._generation.mode == "server" and self._dtypes[0] != self._dtypes[1]:
                ours, theirs = self._dtypes
                raise ValueError(
                    f"the policy computes in {ours} and the vLLM server in {theirs}, so that their log-probs differ. "
                    f"Start the server with --dtype {ours}, change bf16, or say by how much they may differ: "
                    f"weight_sync_tolerance={max(TOLERANCES[ours], TOLERANCES[theirs]):g}"
                )
            self.tolerance = max(TOLERANCES[dtype] for dtype in self._dtypes)
        self.policy_version: int | None = None  # the step whose weights the engine has
        self._proven_at: int | None = None
        self._last_move: tuple[int, Tensor, Tensor] | None = None  # step, engine's and policy's scores
        self._bytes: dict[str, int] = {}
        self._seconds, self._num_syncs, self._since = 0.0, 0, time.perf_counter()
        self._max_dlogp: float | None = None
        self._has_warned = self._has_warned_of_rollouts = False

    def __call__(self) -> None:
        """Brings the engine the policy's weights. A collective call, with all processes."""
        with self._trainer.stopwatch("sync"):
            self._sync()

    def _sync(self) -> None:
        started = time.perf_counter()
        self._deliver()
        self.policy_version = self._trainer.state.global_step
        every, proven_at = self._trainer.args.weight_sync_probe_every, self._proven_at
        # a second `train` begins at step 0 again
        if every == 1 or (every and (proven_at is None or not proven_at <= self.policy_version < proven_at + every)):
            self.prove()
        self._seconds += time.perf_counter() - started
        self._num_syncs += 1

    def expect_proof(self) -> None:
        """Has the next sync proven, whatever `weight_sync_probe_every`."""
        self._proven_at = None

    def prove(self) -> None:
        """Compares policy and engine now. A collective call, with all processes."""
        policy, engine = self._policy_scores(), self._engine_scores()
        difference = (policy - engine).abs().max().item()
        frozen_since, drift = self._drift_of_a_frozen_engine(policy, engine)
        found = torch.tensor([difference, drift], dtype=torch.float64, device=policy.device)
        self._max_dlogp, worst_drift = self._trainer.accelerator.gather(found.unsqueeze(0)).amax(0).tolist()
        self._proven_at = self._trainer.state.global_step
        is_frozen = worst_drift > _SHARE_OF_TOLERANCE * self.tolerance
        if self._max_dlogp <= self.tolerance and not is_frozen:  # NaN is not
            return
        since = f" The engine's scores are those of step {frozen_since}, to the bit." if drift else ""
        saved, explained = save_resumable(self._trainer), self._explanation(engine)
        raise WeightSyncError(
            f"after the weight sync of step {self._proven_at} the engine does not compute what the policy computes: "
            f"max |Δ log-prob| of the probe is {self._max_dlogp:.3g} nats (weight_sync_tolerance {self.tolerance:.3g}; "
            f"policy in {self._dtypes[0]}, engine in {self._dtypes[1]}).{since} {explained[0].upper()}{explained[1:]}. "
            "Where engine and policy differ by more than rounding in health (quantised weights, mixtures of experts), "
            f"set weight_sync_tolerance. {saved}"
        )

    def look_at_rollouts(self, differences: list[float]) -> None:
        """Proves the engine at once when the log-probs of rollouts differ by more than the tolerance in the mean.

        Args:
            differences: TRL's metric, mean |Δ log-prob| of the tokens of all processes; the last counts.
        """
        if not differences or differences[-1] <= self.tolerance:
            return
        if self._sequences and self._proven_at != self._trainer.state.global_step:
            if getattr(self._generation, "_llm_weights_sleeping", False):  # the weights that were sampled with are gone
                return self.expect_proof()
            try:
                self.prove()
            except ServerLostError:  # which the next sync deals with
                return self.expect_proof()
        if not self._has_warned_of_rollouts:
            self._has_warned_of_rollouts = True
            logger.warning(
                "the log-probs of the rollouts of step %d differ by %.3g nats from the policy's in the mean, though "
                "the probe %s. Sampling options that the engine applies and the policy does not (a logits processor, "
                "--logprobs-mode) would explain it",
                self._trainer.state.global_step,
                differences[-1],
                "agrees" if self._sequences else "is off (weight_sync_probe_every=0)",
            )

    def pop_metrics(self) -> dict[str, float]:
        """Since the last call: seconds and GB a sync, share of the time, the probe's last result."""
        now = time.perf_counter()
        share, self._since = self._seconds / max(now - self._since, 1e-9), now
        metrics: dict[str, float] = {}
        if self._num_syncs:
            metrics = {
                "weight_sync/seconds": self._seconds / self._num_syncs,
                "weight_sync/gigabytes": sum(self._bytes.values()) / 1e9,
                "weight_sync/share_of_time": share,
            }
            if share > _LARGE_SHARE and not self._has_warned and self.policy_version:
                self._has_warned = True
                logger.warning(
                    "%.0f %% of the time goes into weight syncs (%.2f s each). More samples a step "
                    "(gradient_accumulation_steps) or several steps a batch of samples (steps_per_generation) make "
                    "them rarer; weight_sync_probe_every=10 makes their proof rarer",
                    100 * share,
                    metrics["weight_sync/seconds"],
                )
        if self._max_dlogp is not None:
            metrics["weight_sync/probe_max_dlogp"] = self._max_dlogp
        if self.policy_version is not None:
            metrics["weight_sync/policy_version"] = float(self.policy_version)
        self._seconds, self._num_syncs, self._max_dlogp = 0.0, 0, None
        return metrics

    def _counted_params(self) -> Iterator[tuple[str, Tensor]]:
        model = self._generation.model
        is_adapted = isinstance(model, PeftModel)
        with merged_without_trace(model) if is_adapted and not is_sharded(self._trainer) else nullcontext():
            for name, parameter in self._params():
                self._bytes[name] = parameter.numel() * parameter.element_size()
                # TRL subtracts adapters from shards in place, perhaps before they have been sent
                yield name, parameter.clone() if is_adapted and is_sharded(self._trainer) else parameter

    def _drift_of_a_frozen_engine(self, policy: Tensor, engine: Tensor) -> tuple[int, float]:
        """How far the policy's scores have moved, and since when, while the engine's have stayed the same."""
        if self._last_move is None or not torch.equal(engine, self._last_move[1]):
            self._last_move = (self._trainer.state.global_step, engine, policy)
        step, _, policy_then = self._last_move
        return step, (policy - policy_then).abs().max().item()

    def _policy_scores(self) -> Tensor:
        with self._trainer.accelerator.autocast():  # which `train` builds into the model, and nobody before it
            return policy_log_probs(self._trainer.model, self._sequences, self._trainer.accelerator.device)

    def _engine_scores(self) -> Tensor:
        device = self._trainer.accelerator.device
        if self._generation.mode == "colocate":
            return engine_log_probs(self._generation, self._sequences, device)
        scores = on_main_process(
            self._trainer.accelerator,
            lambda: engine_log_probs(self._generation, self._sequences, torch.device("cpu")),
        )
        return scores.to(device)

    def _engine_dtype(self) -> str:
        if self._generation.mode == "colocate":
            return name_of(self._generation.llm.llm_engine.model_config.dtype)
        return on_main_process(
            self._trainer.accelerator,
            lambda: name_of(self._generation.vllm_client.get_server_info()["model_config"]["dtype"]),
        )

    def _explanation(self, engine: Tensor) -> str:
        if is_sharded(self._trainer):
            return "which parameters are to blame is not looked for where they are sharded"
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        try:
            return explanation(model, self._policy_scores, engine, self.tolerance)
        except Exception as error:  # of memory, of a checkpoint that has moved: the fault itself is what matters
            return f"which parameters are to blame could not be found out ({type(error).__name__}: {error})"
