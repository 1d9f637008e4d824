"""The fields of `WeightedSFTConfig` that are about Atropos. No heavy imports: `--help` reads this file.

Their other spelling, `data.atropos.api_url` and so on, is that of the interface published for verl.
"""

from dataclasses import dataclass, field

__all__ = ["AtroposOptions"]


@dataclass
class AtroposOptions:
    """Where batches of Atropos come from, what is trained on, and where the policy goes.

    Args:
        atropos_api_url: each optimizer step trains on one batch of this server; needs `max_steps`, no data set.
        atropos_data_path: a file of groups that an environment wrote in process mode, or one of atropos-sft-gen.
        atropos_batch_size: sequences of a batch, as registered with Atropos.
        atropos_refresh_interval: seconds between two requests while there is not enough data.
        atropos_journal: the folder where each batch is kept before it is trained on. A resume reads from it what the
            checkpoint has not consumed.
        atropos_replay: a journal to train on again, without a server.
        atropos_score_normalization: a key of `online_sft.atropos.weights.SCORE_NORMALISATIONS`.
        atropos_advantages_of_sequences: rows of advantages with one entry belong to the whole sequence.
        atropos_max_quarantined: the run stops at a batch of which a larger share of the groups is malformed.
        atropos_max_staleness: groups that were sampled more optimizer steps ago are left out. Known where the
            environment says it, in `generation_params.policy_version`.
        atropos_timeout: seconds of silence, and then of transfer, after which an answer is given up.
        atropos_max_response_bytes: of one answer.
        atropos_warn_after: seconds without a batch after which that is warned of, again and again.
        atropos_reset_on_conflict: clear a server that holds another registration, with all data that waits there.
        atropos_sync_url: the server that the environments sample from; gets the policy's weights.
        atropos_sync_engine: what it is: "serve" (`online-sft serve`), or "vllm" (`trl vllm-serve`).
        vllm_group_port: of the connection that brings the weights to vLLM.
        atropos_sync_every: optimizer steps between two of these.
        atropos_sync_timeout: seconds after which a server that takes no weights stops the run.
    """

    atropos_api_url: str | None = field(
        default=None,
        metadata={
            "help": "Atropos' API, http://127.0.0.1:8000: each optimizer step trains on one of its batches. Needs "
            "max_steps and no data set. Also --data.atropos.api_url, as all of these."
        },
    )
    atropos_data_path: str | None = field(
        default=None,
        metadata={"help": "A .jsonl file of an environment's process mode, or of atropos-sft-gen, to train on."},
    )
    atropos_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Sequences of a batch of Atropos. Default: per_device_train_batch_size x "
            "gradient_accumulation_steps x processes, which it must be."
        },
    )
    atropos_refresh_interval: float = field(
        default=2.0, metadata={"help": "Seconds between two requests while Atropos has not enough data."}
    )
    atropos_journal: str | None = field(
        default=None,
        metadata={"help": "Folder that keeps each batch before it is trained on. Default: journal, in output_dir."},
    )
    atropos_replay: str | None = field(
        default=None, metadata={"help": "A journal to train on again, batch by batch, without a server."}
    )
    atropos_score_normalization: str = field(
        default="mean",
        metadata={
            "help": "Weights of groups without advantages: scores minus their mean (`mean`), over their standard "
            "deviation (`mean_std`), or as they are (`none`).",
            "choices": ["none", "mean", "mean_std"],
        },
    )
    atropos_advantages_of_sequences: bool = field(
        default=False, metadata={"help": "Rows of advantages with one entry belong to the whole sequence."}
    )
    atropos_max_quarantined: float = field(
        default=0.5,
        metadata={"help": "Stop at a batch of which a larger share of the groups is malformed. 1: never stop."},
    )
    atropos_max_staleness: int | None = field(
        default=None,
        metadata={
            "help": "Leave out groups that were sampled more optimizer steps ago (where the environment says so, in "
            "generation_params.policy_version)."
        },
    )
    atropos_timeout: float = field(
        default=300.0, metadata={"help": "Seconds after which an answer of Atropos is given up, and its batch lost."}
    )
    atropos_max_response_bytes: int = field(
        default=1 << 30, metadata={"help": "A larger answer of Atropos is not read, and its batch lost."}
    )
    atropos_warn_after: float = field(default=300.0, metadata={"help": "Warn after so many seconds without a batch."})
    atropos_reset_on_conflict: bool = field(
        default=False,
        metadata={"help": "Clear an Atropos that ignores our registration, with all data that waits there."},
    )
    atropos_sync_url: str | None = field(
        default=None,
        metadata={"help": "The server that the environments sample from: it gets the policy's weights."},
    )
    atropos_sync_engine: str = field(
        default="serve",
        metadata={
            "help": "That server: `serve` (online-sft serve) or `vllm` (trl vllm-serve).",
            "choices": ["serve", "vllm"],
        },
    )
    vllm_group_port: int = field(default=51216, metadata={"help": "Port for the weights on their way to vLLM."})
    atropos_sync_every: int = field(default=1, metadata={"help": "Optimizer steps between two weight syncs."})
    atropos_sync_timeout: float = field(
        default=60.0, metadata={"help": "Seconds after which a server that takes no weights stops the run."}
    )

    @property
    def atropos_sources(self) -> list[str]:
        """The fields that name a source of data; at most one may."""
        return [name for name in ("atropos_api_url", "atropos_data_path", "atropos_replay") if getattr(self, name)]

    @property
    def is_atropos_stream(self) -> bool:
        """Whether each optimizer step trains on one batch of Atropos."""
        return bool(self.atropos_api_url or self.atropos_replay)

    # What `trainers.engine` reads of a GRPOConfig, about the server of `atropos_sync_url`
    @property
    def vllm_server_base_url(self) -> str | None:
        return self.atropos_sync_url

    @property
    def vllm_server_timeout(self) -> float:
        return self.atropos_sync_timeout

    @property
    def max_completion_length(self) -> int:
        return 1  # environments choose the length of what they sample

    def check_atropos(self, sequences_per_step: int) -> None:
        """Refuses what cannot work.

        Args:
            sequences_per_step: of all processes.

        Raises:
            ValueError
        """
        if len(self.atropos_sources) > 1:
            raise ValueError(f"{' and '.join(self.atropos_sources)} are sources of data; set one")
        for name in ("atropos_api_url", "atropos_sync_url"):
            url = getattr(self, name)
            if url and not url.startswith(("http://", "https://")):
                raise ValueError(f"{name} must begin with http:// or https://; got {url!r}")
        if self.atropos_score_normalization not in ("none", "mean", "mean_std"):
            raise ValueError(
                "atropos_score_normalization must be one of none, mean, mean_std; got "
                f"{self.atropos_score_normalization!r}"
            )
        if self.atropos_sync_engine not in ("serve", "vllm"):
            raise ValueError(f"atropos_sync_engine must be serve or vllm; got {self.atropos_sync_engine!r}")
        for name in ("refresh_interval", "timeout", "max_response_bytes", "warn_after", "sync_every", "sync_timeout"):
            if not getattr(self, f"atropos_{name}") > 0:
                raise ValueError(f"atropos_{name} must be above 0; got {getattr(self, f'atropos_{name}')}")
        if not 0 <= self.atropos_max_quarantined <= 1:
            raise ValueError(f"atropos_max_quarantined is a share, 0 to 1; got {self.atropos_max_quarantined}")
        if self.atropos_max_staleness is not None and self.atropos_max_staleness < 0:
            raise ValueError(f"atropos_max_staleness must be 0 or more; got {self.atropos_max_staleness}")
        staleness, every = self.atropos_max_staleness, self.atropos_sync_every
        if self.atropos_sync_url and staleness is not None and every > staleness + 1:
            raise ValueError(
                f"atropos_sync_every={every} makes every batch more than atropos_max_staleness={staleness} optimizer "
                "steps old before the next sync; make it smaller, or allow more"
            )
        of_streams = ("batch_size", "journal", "max_staleness", "reset_on_conflict")
        for name in () if self.is_atropos_stream else of_streams:
            if getattr(self, f"atropos_{name}"):
                raise ValueError(f"atropos_{name} has no effect without atropos_api_url")
        if self.atropos_sync_url and not self.atropos_api_url:
            raise ValueError("atropos_sync_url without atropos_api_url: nobody samples from that server for this run")
        if self.atropos_api_url and self.atropos_batch_size not in (None, sequences_per_step):
            raise ValueError(
                f"atropos_batch_size={self.atropos_batch_size}, and an optimizer step has {sequences_per_step} "
                "sequences (per_device_train_batch_size x gradient_accumulation_steps x processes); make them equal"
            )
