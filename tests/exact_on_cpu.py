"""Trainer arguments for runs whose numbers are compared: float32, on the CPU, every step logged, nothing saved."""

EXACT_ON_CPU = {
    "output_dir": "out",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
}
