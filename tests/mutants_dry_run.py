"""Breaks of `--dry_run` and of the schema of configuration files; see mutants.py."""

D = "trainers/dry_run/"
ARITHMETIC, MEMORY, PLANNED, REPORT, EXAMPLES, ESTIMATE, BLANK = (
    f"{D}{name}.py" for name in ("arithmetic", "memory", "planned", "report", "examples", "estimate", "blank_model")
)
SCHEMA, LAUNCHING = "online_sft/config_schema.py", "online_sft/launching.py"
NUMBERS, SHOWN, OF_SCHEMA = "dry_run_numbers", "dry_run", "config_schema"

OF_DRY_RUN = [
    ("prompts of a generation batch", ARITHMETIC, "return self.completions_per_generation // self.num_generations", "return self.per_step // self.num_generations", NUMBERS),
    ("micro-batches of each iteration", ARITHMETIC, "generations * self.steps_per_generation * self.num_iterations", "generations * self.steps_per_generation", NUMBERS),
    ("steps of an epoch, and a smaller one", ARITHMETIC, "whole * self.micro_batches_per_epoch + rest", "whole * self.steps_per_epoch * self.accumulation + rest", NUMBERS),
    ("rows for every process", ARITHMETIC, "math.ceil(math.ceil(self.num_rows / self.per_device) / self.num_processes)", "math.ceil(self.num_rows / self.per_device)", NUMBERS),
    ("two moments", MEMORY, "return 2 * moments + _EVERY", "return moments + _EVERY", NUMBERS),
    ("counters of steps", MEMORY, "return 2 * moments + _EVERY * len(trained)", "return 2 * moments", NUMBERS),
    ("what is frozen", BLANK, "for each in self.model.parameters() if each.requires_grad]", "for each in self.model.parameters()]", NUMBERS),
    ("bytes of each dtype", MEMORY, "sum(count * dtype.itemsize for", "sum(count * 4 for", NUMBERS),
    ("one layer beside the checkpoints", MEMORY, "layers.num_layers * layers.hidden + of_layer\n", "layers.num_layers * layers.hidden\n", NUMBERS),
    ("training beside sampling", MEMORY, 'sums[""] + max(sums["training"], sums["sampling"])', "sum(sums.values())", NUMBERS),
    ("what ZeRO-2 divides", PLANNED, '2: frozenset({"gradients", "optimizer"})', '2: frozenset({"optimizer"})', NUMBERS),
    ("float32 beside 16 bits", MEMORY, "num_bytes += sum(4 * each.numel() for each in trained)", "pass", NUMBERS),
    ("the planned processes", PLANNED, "return self.launch.num_processes", "return 1", NUMBERS),
    ("processes that wait", PLANNED, "environment.pop(name, None)", "environment.get(name)", NUMBERS),
    ("a reference with adapters", ESTIMATE, "config.beta != 0.0 and len(trained) == len(held)", "config.beta != 0.0", NUMBERS),
    ("weights of the model", BLANK, "model = architecture._from_config(config, dtype=dtype)", "model = architecture.from_pretrained(path, dtype=dtype)", SHOWN),
    ("what the run would write", REPORT, "    inert.output_dir = folder\n", "", SHOWN),
    ("the reference of a run that is described", REPORT, '    "beta": 0.0,\n', "", SHOWN),
    ("the first rows only", REPORT, "dataset.select(range(min(NUM_ROWS, len(dataset))))", "dataset", SHOWN),
    ("rows that are extrapolated", REPORT, "round(num_rows * num_given / NUM_ROWS)", "num_rows", SHOWN),
    ("special tokens", EXAMPLES, "skip_special_tokens=False", "skip_special_tokens=True", SHOWN),
    ("weights as the trainer has them", EXAMPLES, ".masked_fill(~loss, 0.0)", ".abs()", SHOWN),
    ("roles", EXAMPLES, 'OBSERVATION: "observation"', 'OBSERVATION: "action"', SHOWN),
    ("a context that is too short", REPORT, "needed <= limit", "True", SHOWN),
    ("processes that are not the first", PLANNED, "if launch.rank:", "if False:", SHOWN),
    ("GPUs that are not here", PLANNED, 'arguments = ["--use_cpu", "true", *arguments]', "pass", SHOWN),
    ("commands that do not train", LAUNCHING, "if dry_run and set(_DRY_RUN) & set(arguments):", "if set(_DRY_RUN) & set(arguments):", SHOWN),
    ("the other spelling", LAUNCHING, '_DRY_RUN = ("--dry_run", "--dry-run")', '_DRY_RUN = ("--dry_run",)', SHOWN),
    ("typos", SCHEMA, '"additionalProperties": False}', '"additionalProperties": True}', OF_SCHEMA),
    ("choices", SCHEMA, 'field = {"type": field["type"], "enum": list(action.choices)}', "pass", OF_SCHEMA),
    ("null", SCHEMA, "field = _or_null(field)", "pass", OF_SCHEMA),
    ("one item without brackets", SCHEMA, 'field["type"] = ["string", *_listed(field["type"])]', "pass", OF_SCHEMA),
    ("items of lists", SCHEMA, '"items": _values(members[0])}', '"items": {}}', OF_SCHEMA),
    ("enumerations that may be strings", SCHEMA, "and not (has_enum and each is str)", "", OF_SCHEMA),
    ("the nested spelling", SCHEMA, "name.removeprefix(_ATROPOS): fields[name]", "name: fields[name]", OF_SCHEMA),
]  # fmt: skip
