"""The fields about weight syncs to vLLM that all our configs share. No heavy imports: `--help` reads this file."""

from dataclasses import dataclass, field

__all__ = ["WeightSyncOptions"]


@dataclass
class WeightSyncOptions:
    """How the policy's weights get to vLLM, and how that is proven.

    Args:
        weight_sync_probe_every: steps between two proofs that the engine has the policy's weights; 0
            is never.
        weight_sync_tolerance: largest difference of a token's log-prob in the proof, nats; None: by dtype,
            `trainers.engine.dtypes.TOLERANCES`.
        weight_sync_timeout: seconds after which a weight sync that has not ended stops the run.
        vllm_server_reconnect_timeout: seconds to wait for a server that does not answer any more; 0 stops at once.
    """

    weight_sync_probe_every: int = field(
        default=1,
        metadata={"help": "vLLM: steps between two proofs that the engine has the policy's weights. 0: never."},
    )
    weight_sync_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "vLLM: the largest difference of a token's log-prob in that proof, in nats. Default: 0.001 in "
            "float32, 0.1 in float16, 0.5 in bfloat16."
        },
    )
    weight_sync_timeout: float = field(
        default=300.0, metadata={"help": "vLLM server: seconds after which an unfinished weight sync stops the run."}
    )
    vllm_server_reconnect_timeout: float = field(
        default=0.0,
        metadata={"help": "Seconds to wait for a vLLM server that does not answer any more. 0: save and stop."},
    )
