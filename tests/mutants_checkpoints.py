"""Breaks of what saves and resumes; see mutants.py."""

C = "trainers/checkpoints/"
RESUMABLE, CHOICE, MANIFEST, CYCLE, SAMPLERS, STREAM, ATOMIC = (
    f"{C}{name}.py" for name in ("resumable", "choice", "manifest", "cycle", "samplers", "stream", "atomic")
)
ONLINE, WEIGHTS = "trainers/online_sft_trainer.py", "trainers/whole_weights.py"
RESUME, REFUSE, SAVED, FAULTS, MODES, SHARDED = (
    "exact_resume", "resume_refusals", "saved_models", "launched_faults", "distributed_modes", "sharded_saving"
)  # fmt: skip

OF_CHECKPOINTS = [
    ("the rollouts in use", CYCLE, 'trainer._step, trainer._buffered_inputs = state["step"], state["rollouts"]', 'trainer._step = state["step"]', RESUME),
    ("how many micro-batches have been", CYCLE, 'trainer._step, trainer._buffered_inputs = state["step"], state["rollouts"]', 'trainer._buffered_inputs = state["rollouts"]', RESUME),
    ("when rollouts are used up", CYCLE, "(trainer.args.steps_per_generation * trainer.num_iterations) == 0", "trainer.args.steps_per_generation == 0", RESUME),
    ("an order by epoch", SAMPLERS, "manual_seed(self._seed + epoch)", "manual_seed(self._seed)", "samplers"),
    ("the sampler's epoch", RESUMABLE, "self._sampler.set_epoch(epoch)", "pass", "kills"),
    ("an order that is the process's", SAMPLERS, "isinstance(sampler, LengthGroupedSampler | RandomSampler)", "isinstance(sampler, LengthGroupedSampler)", RESUME),
    ("an order by length", SAMPLERS, "isinstance(sampler, LengthGroupedSampler | RandomSampler)", "isinstance(sampler, RandomSampler)", RESUME),
    ("the order of prompts", SAMPLERS, "return SeededByEpoch(sampler, args.seed) if sampler.shuffle else sampler", "return sampler", RESUME),
    ("data_seed", SAMPLERS, "args.seed if args.data_seed is None else args.data_seed", "args.seed", "samplers"),
    ("the place in a stream", RESUMABLE, 'self._stream.position = state["stream"]', "pass", RESUME),
    ("the passes of a stream", STREAM, "loader.set_epoch(epoch)", "loader.set_epoch(0)", "samplers"),
    ("a stream's batches that are behind", STREAM, "skip_first_batches(self._loader, num_batches) if num_batches else self._loader", "self._loader", RESUME),
    ("a stream that draws when it begins", STREAM, "with own_random_numbers():\n        batches", "if True:\n        batches", "samplers"),
    ("an empty stream", STREAM, "if is_empty:", "if False:", "samplers"),
    ("a step's batches", STREAM, "self._position_after_step = (epoch, num_batches)", "self._position_after_step = (epoch, num_batches - 1)", RESUME),
    ("tokens so far", RESUMABLE, 'self._total_train_tokens = state["num_tokens"]', "pass", RESUME),
    ("empty batches in a row", CYCLE, 'trainer._empty_batches = state["empty_batches"]', "pass", "group_filter"),
    ("a checkpoint aside", RESUMABLE, "return self._aside or super()._get_output_dir(trial)", "return super()._get_output_dir(trial)", RESUME),
    ("what a killed run has left", ATOMIC, "shutil.rmtree(aside, ignore_errors=True)", "pass", REFUSE),
    ("a checkpoint that is written again", ATOMIC, "if final.exists():", "if False:", REFUSE),
    ("the best checkpoint's place", RESUMABLE, "self.state.best_model_checkpoint = final", "pass", SAVED),
    ("the best checkpoint's place in its file", RESUMABLE, "self.state.save_to_json(os.path.join(written, TRAINER_STATE_NAME))", "pass", SAVED),
    ("the limit of checkpoints", RESUMABLE, "rotate_checkpoints(run_dir, limit, best_model_checkpoint=best, use_mtime=True)", "pass", SAVED),
    ("another format", MANIFEST, 'manifest["format_version"] != FORMAT_VERSION', "False", REFUSE),
    ("a file that is missing", MANIFEST, "if not path.exists():", "if False:", REFUSE),
    ("a file that is cut", MANIFEST, "if path.stat().st_size != size:", "if False:", REFUSE),
    ("other data", MANIFEST, "sorted({0, num_rows // 2, num_rows - 1})", "[0]", REFUSE),
    ("other libraries", CHOICE, 'if others := differences(manifest["versions"], installed_versions()):', "if others := []:", REFUSE),
    ("another seed", CHOICE, '    "seed",\n', "", REFUSE),
    ("other sizes", CHOICE, '    "gradient_accumulation_steps",\n', "", REFUSE),
    ("the flag", CHOICE, "if not trainer.args.allow_inexact_resume:", "if True:", REFUSE),
    ("no flag", CHOICE, "if not trainer.args.allow_inexact_resume:", "if False:", REFUSE),
    ("the model only", CHOICE, 'reasons.append("it holds the model only (save_only_model)")', "pass", REFUSE),
    ("data that begin anew", RESUMABLE, "begins_anew = self.args.ignore_data_skip and", "begins_anew = False and", REFUSE),
    ("a reference that moves", ONLINE, "is not saved\": self.args.sync_ref_model", "is not saved\": False", REFUSE),
    ("callbacks made anew", RESUMABLE, "if self.args.restore_callback_states_from_checkpoint:", "if False:", REFUSE),
    ("who fails first", "trainers/first_failure.py", "and _is_first()", "", FAULTS),
    ("what fails first", "trainers/first_failure.py", "get_error_handler().record_exception(error)", "pass", FAULTS),
    ("the model of a sharded run", RESUMABLE, 'plugin.set_state_dict_type("FULL_STATE_DICT")', "pass", SHARDED),
    ("gathered adapters", WEIGHTS, "    if is_sharded(trainer):\n", "    if False:\n", SHARDED),
    ("adapters that stay apart", WEIGHTS, "    adapted.merge_adapter()\n", "", SHARDED),
    ("names with an adapter in them", WEIGHTS, '.replace(".base_layer", "")', "", SAVED),
    ("the merged model of the command line", "online_sft/launching.py", "if config.save_merged_model:", "if False:", SAVED),
]  # fmt: skip
