"""A small server of a policy whose weights change: what `online-sft serve` runs, for CPUs and tests.

prompt → `request_parsing` → `batching`, whose thread owns the model → `generation` → `answers`. `weights` come in
between two batches.
"""
