"""Breaks the code on purpose, one line at a time, and expects a test to fail: `make mutants`.

Each mutant names the file, the text, what it becomes, and the tests that must notice. Everything happens in a copy.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOSSES, ESTIMATORS, BASELINES = "online_sft/losses.py", "online_sft/estimators.py", "online_sft/baselines.py"
FUSED, NORMAL, WEIGHTINGS = (f"online_sft/{name}.py" for name in ("fused_cross_entropy", "normalisation", "weightings"))
OBJECTIVES, STATISTICS, INTERFACE = (f"online_sft/{n}.py" for n in ("objectives", "weight_statistics", "interface"))
DENOMINATORS, ADVANTAGES = "online_sft/denominators.py", "online_sft/advantages.py"
WEIGHTED, ONLINE, STEP = (f"trainers/{n}.py" for n in ("weighted_sft_trainer", "online_sft_trainer", "step_weights"))
DATA, COLLATOR, HEAD = (f"trainers/weighted_{name}.py" for name in ("data", "collator", "lm_head"))
RUNNING = "trainers/running_advantages.py"
REWARDS = "online_sft/rewards/"
P3, IMPORTANCE, GROUPS, VERIFY, ENUM = (
    f"online_sft/{n}.py" for n in ("proposition3", "importance", "group_advantages", "verification", "enumeration")
)
FILTER, CONFIG, METRICS, FUNCTIONS, PROMPTS = (
    f"trainers/{n}.py" for n in ("group_filter", "online_sft_config", "online_metrics", "reward_functions", "prompts")
)
TASKS, LAYOUTS, TRAIN = (f"online_sft/{name}.py" for name in ("tasks", "layouts", "train"))
EVALUATION, NEURAL = "online_sft/evaluation.py", "online_sft/rewards/neural.py"
SAMPLED, MODELS = "trainers/evaluation.py", "trainers/reward_models.py"
IN_SAMPLED, IN_NEURAL, IN_REWARD_MODELS = "sampled_evaluation", "neural_reward_model", "reward_models_in_trainer"
IN_SFT, IN_ONLINE, IN_OPTIONS = "weighted_sft_trainer", "online_sft_trainer", "weighted_sft_options"
IN_FUSED, IN_DATA, IN_PATHS, IN_SEEDS = "fused_cross_entropy", "weighted_data", "weighted_paths", "seed_interfaces"

MUTANTS = [
    # what is broken, file, from, to, tests/test_<this>.py
    ("the sign of the loss", LOSSES, "return -weighted_log", "return weighted_log", "losses"),
    ("the denominator", LOSSES, ".sum() / denominator", ".sum() / log_probs.numel() * 1 + 0 * denominator", "losses"),
    ("the label mask", LOSSES, ".squeeze(-1).masked_fill(ignored, 0.0)", ".squeeze(-1)", "losses"),
    ("the shift of the weights", LOSSES, "weights = weights[:, 1:]", "weights = weights[:, :-1]", "losses"),
    ("the shift of the labels", LOSSES, "labels = labels[:, 1:]", "labels = labels[:, :-1]", "losses"),
    ("the temperature", LOSSES, "(logits / temperature)", "logits", "losses"),
    ("the stop-gradient of the weights", LOSSES, "weights = weights.detach()", "weights = weights * 1", "losses"),
    ("0 * inf", LOSSES, "log_probs.masked_fill(weights == 0, 0.0)", "log_probs", "losses"),
    ("half precision", LOSSES, "logits = logits.float()", "pass", "losses"),
    ("the empty step", LOSSES, "denominator.masked_fill(denominator == 0, 1)", "denominator", "losses"),
    ("the live w", ESTIMATORS, "-(w * s + 0.5", "-(w.detach() * s + 0.5", "estimators"),
    ("the stop-gradient of w", ESTIMATORS, "0.5 * w.detach()", "0.5 * w", "estimators"),
    ("the half", ESTIMATORS, "0.5 * w", "w", "estimators"),
    ("the stop-gradient of A", ESTIMATORS, "adv.detach() * log_prob)", "adv * log_prob)", "estimators"),
    ("the pathwise term", ESTIMATORS, "-(adv + adv.detach() * log_prob)", "-(adv.detach() * log_prob)", "estimators"),
    ("the sign of the KL", ESTIMATORS, "adv - beta *", "adv + beta *", "estimators"),
    ("the reference", ESTIMATORS, "(log_prob - ref_log_prob.detach())", "log_prob", "estimators"),
    ("the guard at s = 0", ESTIMATORS, "log_prob.abs() >= denom_eps", "log_prob.abs() >= 0", "estimators"),
    ("leaving one out", BASELINES, " - rewards.nan_to_num()", "", "baselines"),
    ("the count of the others", BASELINES, " - (~rewards.isnan()).int()", "", "baselines"),
    ("unscored in the group mean", BASELINES, "rewards.nanmean(", "rewards.mean(", "baselines"),
    ("the sign of the fused loss", FUSED, "return -total", "return total", IN_FUSED),
    ("the sign of the fused gradient", FUSED, "(chain * slopes)", "(-chain * slopes)", IN_FUSED),
    ("the one-hot", FUSED, "probs[rows, targets] -= 1", "pass", IN_FUSED),
    ("the chain rule of scale and temperature", FUSED, "(chain * slopes)", "(1 * slopes)", IN_FUSED),
    ("the slope of the cap", FUSED, "1 - capped.square()", "1 - 0 * capped", IN_FUSED),
    ("the objective's slope", OBJECTIVES, "(slopes,) = torch.autograd.grad(value, log_probs)", "slopes = weights", IN_FUSED),
    ("the bias", FUSED, "logits += head_bias", "pass", IN_FUSED),
    ("the gradient of the bias", FUSED, "grad_bias += (error", "grad_bias += 0 * (error", IN_FUSED),
    ("the sum over chunks", FUSED, "total.addmm_(", "total.copy_(0 * total).addmm_(", IN_FUSED),
    ("weight 0 is skipped", FUSED, "& (weights != 0)", "", IN_FUSED),
    ("float32 accumulation", FUSED, "promote_types(dtype, torch.float32)", "promote_types(dtype, dtype)", IN_FUSED),
    ("the incoming gradient", FUSED, "grad.mul_(grad_nll)", "grad", IN_FUSED),
    ("the entropy's sign", FUSED, "= -torch.bmm", "= torch.bmm", IN_FUSED),
    ("p log p at 0", FUSED, "all_log_probs.clamp_(min=torch.finfo(wide).min)", "all_log_probs", IN_FUSED),
    ("the average over ranks", FUSED, 'grad_placements=[Partial("avg")] * parameter.device_mesh.ndim', "", "distributed"),
    ("the shift of the head's labels", HEAD, 'kwargs.pop("labels")[:, 1:]', 'kwargs.pop("labels")[:, :-1]', "weighted_lm_head"),
    ("the shift of the head's weights", HEAD, "token_weighting.weights[:, 1:]", "token_weighting.weights[:, :-1]", "weighted_lm_head"),
    ("the head's soft cap", HEAD, '"final_logit_softcapping"', '"no_such_name"', "weighted_lm_head"),
    ("the head's scale", HEAD, '"logit_scale", ', "", "weighted_lm_head"),
    ("the head's bias", HEAD, "head_bias=head.bias", "head_bias=None", "weighted_lm_head"),
    ("the floor", HEAD, "partial(floored, floor=args.negative_log_prob_floor)", "weighted_log_probs", IN_OPTIONS),
    ("the sign that the floor looks at", OBJECTIVES, "weights < 0", "weights > 0", "objectives"),
    ("the probability in DFT", OBJECTIVES, "weights * log_probs.exp()", "weights", "objectives"),
    ("the cut of the ratio", OBJECTIVES, ".clamp(max=max_weight)", "", "objectives"),
    ("the mask of the ratio", OBJECTIVES, ".masked_fill(~mask, 0.0)", "", "objectives"),
    ("the mask of the moments", NORMAL, "values = float64(advantages[mask])\n    found, inverse, counts", "values = float64(advantages.flatten()[: mask.sum()])\n    found, inverse, counts", "normalisation"),
    ("the mean", NORMAL, "((values - means) /", "(values /", "normalisation"),
    ("the spread between micro-batches", NORMAL, "+ difference**2 * self.count * other.count / count", "", "normalisation"),
    ("the population's spread", NORMAL, "self.squared_deviations / self.count)", "self.squared_deviations / (self.count - 1))", "normalisation"),
    ("cells of a sequence", NORMAL, "        return sequences", "        return sequences * 0", "normalisation"),
    ("loss tokens of the denominator", DENOMINATORS, "advantages[mask].abs()", "advantages.abs()", "denominators"),
    ("sequences without loss", DENOMINATORS, "sequence_ids[mask]", "sequence_ids", "denominators"),
    ("Z(x) per prompt", WEIGHTINGS, "/ _sum_by_group(likelihood, groups)", "/ likelihood.sum()", "weightings"),
    ("the temperature of Boltzmann", WEIGHTINGS, "(rewards - highest) / temperature", "(rewards - highest)", "weightings"),
    ("the best first", WEIGHTINGS, "argsort(descending=True", "argsort(descending=False", "weightings"),
    ("the value of AWR", WEIGHTINGS, "(rewards - values) / temp", "(rewards) / temp", "weightings"),
    ("the sample size", WEIGHTINGS, ".abs().sum().square()", ".abs().sum()", "weightings"),
    ("the gradient mass", STATISTICS, "-torch.expm1(log_probs)", "torch.ones_like(log_probs)", "weight_statistics"),
    ("the interface's shift", INTERFACE, "advantages.detach()[:, 1:]", "advantages.detach()[:, :-1]", "interface"),
    ("the interface's mask", INTERFACE, "(checked_mask(loss_masks) & (", "((", "interface"),
    ("messages without a weight", DATA, "1.0 if w is None", "0.0 if w is None", IN_DATA),
    ("trap 1: truncation drops weights", DATA, "for name in columns}", 'for name in ("input_ids", "labels")}', IN_SFT),
    ("trap 2: packing drops weights", DATA, "    dataset = dataset.select_columns(columns)", '    dataset = dataset.select_columns(columns[:2] if packing else columns)', IN_PATHS),
    ("trap 3: the signature drops weights", WEIGHTED, "[*self._signature_columns, *missing]", "self._signature_columns", IN_SFT),
    ("trap 4: the collator drops weights", COLLATOR, "if name not in examples[0]:", "if True:", "weighted_collator"),
    ("trap 5: a fragment's first token", COLLATOR, '.masked_fill_(batch["labels"] == -100, 0.0)', "", "weighted_collator"),
    ("trap 6: source read as target", DATA, "    if from_source:\n", "    if False:\n", IN_DATA),
    ("the completion mask", DATA, "    if masks:\n", "    if False:\n", IN_SFT),
    ("the assistant masks", ADVANTAGES, ', "assistant_masks")', ")", IN_SFT),
    ("the row's weight beside its messages'", DATA, "[a * w for a, w", "[w for a, w", IN_DATA),
    ("the padding-free collator", COLLATOR, "[torch.cat(rows)] if self.padding_free else rows", "rows", "weighted_collator"),
    ("sequences of a packed row", STEP, '"position_ids" in batch', "False", IN_PATHS),
    ("the first token is no loss token", STEP, "mask[:, 0] = False", "pass", IN_PATHS),
    ("normalisation over the step", STEP, "gather_object([merge_moments(parts)])", "gather_object([parts[0]])", IN_OPTIONS),
    ("clipping", STEP, "clip(a, self._args.advantage_clipping)", "a", IN_OPTIONS),
    ("the running statistics", STEP, "merge_moments([seen, step])", "step", IN_OPTIONS),
    ("evaluation leaves them", STEP, "if not update:", "if False:", IN_OPTIONS),
    ("their resume", RUNNING, "self.moments = self.step = Moments(*saved", "Moments(*saved", IN_OPTIONS),
    ("the denominator of all ranks", STEP, 'self._accelerator.reduce(total, reduction="sum")', "total", "distributed"),
    ("moments of all ranks", STEP, "gather_object([merge_moments(parts)])", "[merge_moments(parts)]", "distributed"),
    ("statistics of all ranks", WEIGHTED, 'self.accelerator.reduce(local.sums, reduction="sum")', "local.sums", "distributed"),
    ("DDP's average in evaluation", WEIGHTED, ".clamp(min=1) * self._num_averaged", ".clamp(min=1)", "distributed"),
    ("DDP's average in the seed method", WEIGHTED, "/ denominator * self._num_averaged", "/ denominator", "distributed"),
    ("rows of weight 0 that are compared", DATA, 'if args.advantage_normalization != "none":', "if False:", IN_DATA),
    ("labels beside a mask", DATA, 'if "labels" in row:', "if False:", IN_DATA),
    ("what is prepared already", DATA, "dataset.info.description == _PREPARED", "False", IN_DATA),
    ("a step that is given up", STEP, "self._running.step = merged[0]", "self._running.moments = merged[0]", IN_OPTIONS),
    ("the denominator", WEIGHTED, "-outputs.nll / denominator", "-outputs.nll / 7", IN_SFT),
    ("alignment with TRL's head", WEIGHTED, "weights = F.pad(advantages, (offset, 0))", "weights = F.pad(advantages, (0, offset))", IN_OPTIONS),
    ("the ratio's sequences", WEIGHTED, "F.pad(sequence_ids(batch), (offset, 0))", "F.pad(0 * sequence_ids(batch), (offset, 0))", IN_OPTIONS),
    ("the published alignment", WEIGHTED, 'if self.args.align == "source":', "if False:", IN_SEEDS),
    ("the seed method's mask", WEIGHTED, "input_ids.masked_fill(~mask, -100)", "input_ids.masked_fill(mask & ~mask, -100)", IN_SEEDS),
    ("the alarm", WEIGHTED, "negative_nll < 2 * chance", "negative_nll < 2e9 * chance", IN_OPTIONS),
    ("the baseline", GROUPS, "(rewards - baseline(rewards))", "(rewards)", "group_advantages"),
    ("the scale of the advantages", GROUPS, "baseline(rewards)) / REWARD_SCALES[scale](rewards)", "baseline(rewards))", "group_advantages"),
    ("Bessel's correction", GROUPS, "(count - 1).clamp(min=1)", "count.clamp(min=1)", "group_advantages"),
    ("the spread of a degenerate group", GROUPS, "(std <= min_std)", "(std < min_std)", "group_advantages"),
    ("groups with one reward", GROUPS, "(scored.sum(1) < 2) | ", "", "group_advantages"),
    ("rounding in equal rewards", GROUPS, " | equal", "", "group_advantages"),
    ("the completion mask of s", P3, "(log_probs * mask).sum(-1)", "log_probs.sum(-1)", "proposition3"),
    ("the length of a completion", P3, "mask.sum(-1).clamp(min=1)", "mask.size(-1)", "proposition3"),
    ("the clip of s_ref", P3, "self._of_completion(ref_log_probs, mask)", "(ref_log_probs * mask).sum(-1)", "proposition3"),
    ("the importance weight in the loss", P3, "log_probs = reweighted(log_probs, weights)", "pass", "proposition3"),
    ("the sign of k3", P3, "torch.expm1(-k1) + k1", "torch.expm1(k1) - k1", "proposition3"),
    ("the clip of w", ESTIMATORS, "w = w.clamp(-clip_weight_value, clip_weight_value)", "pass", "proposition3"),
    ("the divisor of a clipped w", ESTIMATORS, "log_prob.clamp(max=-denom_eps)", "log_prob", "proposition3"),
    ("the mask of the ratio of a completion", IMPORTANCE, "(mask == 0) | sampler", "sampler", "importance"),
    ("an engine's unknown log-prob", IMPORTANCE, " | sampler_log_probs.isnan()", "", "importance"),
    ("the direction of the ratio", IMPORTANCE, "(log_probs - sampler_log_probs).detach()", "(sampler_log_probs - log_probs).detach()", "importance"),
    ("the gradient into the weights", IMPORTANCE, "(log_probs - sampler_log_probs).detach()", "(log_probs - sampler_log_probs)", "importance"),
    ("token and sequence ratios", IMPORTANCE, 'if level == "sequence"', 'if level == "token"', "importance"),
    ("the earlier batches of the running mean", ONLINE, "self._running_baseline.mean if self._running_baseline", "self._running_baseline.mean.after(rewards) if self._running_baseline", IN_ONLINE),
    ("the decay of the running mean", BASELINES, "self.decay * self.total + mean", "self.total + mean", IN_ONLINE),
    ("the resume of the running mean", "trainers/running_baseline.py", "RunningMean(**saved", "RunningMean() or (saved", IN_ONLINE),
    ("the sampler's log-probs", ONLINE, 'inputs.get("sampling_per_token_logps", inputs.get("old_per_token_logps"))', "None", IN_ONLINE),
    ("the scale of the rewards", ONLINE, "self.args.reward_scale * total", "total", IN_ONLINE),
    ("the shift of the rewards", ONLINE, "total + self.args.reward_shift", "total", IN_ONLINE),
    ("the weight of the overlong penalty", FUNCTIONS, "[*args.reward_weights, 1.0]", "[*args.reward_weights, 0.0]", IN_ONLINE),
    ("the rewards of math", FUNCTIONS, "correct_reward=args.correct_reward, ", "", IN_ONLINE),
    ("the quantiles of the weights", METRICS, '"q95": 0.95', '"q95": 0.9', IN_ONLINE),
    ("the mean over completions of the reward", METRICS, "x.detach().float()[m.bool()].sum()", "x.detach().float()[m.bool()].mean()", IN_ONLINE),
    ("filtered groups in the sum", ONLINE, "advantages = advantages.masked_fill(is_degenerate", "advantages.masked_fill(is_degenerate", "group_filter"),
    ("padding of prompts", FILTER, "left=name in _PADDED_LEFT", "left=False", "group_filter"),
    ("the rows of a group", FILTER, "groups.unsqueeze(1) * num_generations", "groups.unsqueeze(1)", "group_filter"),
    ("degenerate fresh groups", FILTER, "(~degenerate(fresh))", "(degenerate(fresh) | True)", "group_filter"),
    ("the seed of fresh prompts", ONLINE, "seeds=(self.args.seed, self.state.global_step, draws)", "seeds=(self.args.seed, id(self), draws)", "group_filter"),
    ("the share of ranks in fresh prompts", PROMPTS, "generator=generator)[rank]", "generator=generator)[0]", "distributed"),
    ("the same rounds on all ranks", FILTER, "accelerator.gather(is_degenerate.sum().view(1)).max()", "is_degenerate.sum()", "distributed"),
    ("stale samples", CONFIG, "% (self.steps_per_generation * self.num_iterations) != 0", "!= self.gradient_accumulation_steps", "online_sft_config"),
    ("episodes of several iterations", CONFIG, "self.total_episodes * self.num_iterations", "self.total_episodes", "online_sft_config"),
    ("the multinomial", VERIFY, "torch.lgamma(counts + 1).sum(1)", "0 * torch.lgamma(counts + 1).sum(1)", "verification"),
    ("the noise within a level", VERIFY, "return mean, mean.square().sum(1) + spread", "return mean, mean.square().sum(1)", "verification"),
    ("truncated completions of the oracle", VERIFY, "mask = mask * ~policy.is_truncated.unsqueeze(1)", "pass", "verification"),
    ("the temperature of the oracle", ENUM, "(logits / temperature).log_softmax(-1)", "logits.log_softmax(-1)", "enumeration"),
    ("the mass of top_p", ENUM, "<= 1 - top_p", "< top_p", "enumeration"),
    ("unscored in the sum", ONLINE, "terms.loss.masked_fill(~scored, 0.0)", "terms.loss", IN_ONLINE),
    ("unscored in the count", ONLINE, '(~advantages.isnan()).sum()', "torch.tensor(len(advantages))", IN_ONLINE),
    ("the accumulation", ONLINE, "denominator * accumulation / self", "denominator / self", IN_ONLINE),
    ("reward weights", ONLINE, "rewards_per_func * self.rew", "rewards_per_func + 0 * self.rew", IN_ONLINE),
    ("the number of processes", ONLINE, "/ self.accelerator.num_processes", "/ 1", "distributed"),
    ("unscorable if any", ONLINE, "missing.any(dim=1) if", "missing.all(dim=1) if", IN_ONLINE),
    ("unscorable in TRL's metrics", ONLINE, "rewards_per_func.masked_fill(uns", "rewards_per_func.masked_fill(False & uns", IN_ONLINE),
    ("the report of bad golds", PROMPTS, "            if report:", "            if not report:", IN_ONLINE),
    ("the last answer line", f"{REWARDS}answers.py", "reversed(list(_ANSWER_LINE.finditer(text)))", "_ANSWER_LINE.finditer(text)", "answers"),
    ("what was thought", f"{REWARDS}answers.py", '.rpartition("</think>")[2]', "", "answers"),
    ("prose for answer lines", f"{REWARDS}answers.py", "{0,3}answer", "{0,9}answer", "answers"),
    ("the last box", f"{REWARDS}answers.py", "start, _, content = boxes[-1]", "start, _, content = boxes[0]", "answers"),
    ("a closing brace", f"{REWARDS}answers.py", '{"{": 1, "}": -1}.get(text', '{"{": 0, "}": -1}.get(text', "answers"),
    ("percent", f"{REWARDS}exact_number.py", "else number / 100", "else number", "exact_number"),
    ("the sign of a mixed number", f"{REWARDS}exact_number.py", 'return -number if sign', 'return number if sign', "exact_number"),
    ("improper mixed numbers", f"{REWARDS}exact_number.py", "if 0 < numerator < denominator", "if numerator", "exact_number"),
    ("the base", f"{REWARDS}exact_number.py", "Fraction(int(digits, base))", "Fraction(int(digits))", "exact_number"),
    ("scale words as units", f"{REWARDS}units.py", 'core, words = f"{core} {words[0]}", words[1:]', "words = words[1:]", "spelling"),
    ("the power of a unit", f"{REWARDS}units.py", 'f"^{power}" if power else ""', '""', "spelling"),
    ("variables as units", f"{REWARDS}units.py", "and not (glued and len(word) == 1)", "", "spelling"),
    ("brackets around lists", f"{REWARDS}spelling.py", "if depth <= 0 and word in", "if word in", "spelling"),
    ("towers", f"{REWARDS}screening.py", 'if inner["base"] and not _is_small_power', 'if not inner["base"] and not _is_small_power', "screening"),
    ("two answers for one", f"{REWARDS}comparison.py", "if len(alternatives(answer.text)) > 1 and", "if False and", "grading"),
    ("another unit", f"{REWARDS}comparison.py", "if gold.unit and answer.unit and", "if False and", "grading"),
    ("names by anagram", f"{REWARDS}comparison.py", "if gold.is_words or answer.is_words:", "if False:", "grading"),
    ("approximate integers", f"{REWARDS}comparison.py", "numbers[0].denominator == 1 or not", "not", "grading"),
    ("bad golds and equal answers", f"{REWARDS}grading.py", "Verdict.BAD_GOLD if faults[pair[0]] else", "", "grading"),
    ("expressions for numbers", f"{REWARDS}grading.py", "is_open and not is_evaluated", "False and not is_evaluated", "math_verification"),
    ("the relative tolerance", f"{REWARDS}symbolic.py", "distance <= tolerance * size", "distance <= sympy.Rational(1, 10**6)", "grading"),
    ("decimals as floats", f"{REWARDS}expressions.py", "number: _rational(number) for", "number: number for", "grading"),
    ("evaluated relations", f"{REWARDS}expressions.py", "if isinstance(expression, Relational):", "if False:", "grading"),
    ("upper and lower case", f"{REWARDS}expressions.py", "lowercase_symbols=False", "lowercase_symbols=True", "grading"),
    ("the imaginary unit", f"{REWARDS}expressions.py", 'if symbol.name == "i"', 'if symbol.name == "j"', "grading"),
    ("equations without solutions", f"{REWARDS}symbolic.py", "not _have_solutions(gold, answer)", "False", "grading"),
    ("both signs", f"{REWARDS}spelling.py", '{"pm": "-", "mp": "+"}] if', '] if', "grading"),
    ("repetitions in a list", f"{REWARDS}comparison.py", "sorted(lists[0]) == sorted(lists[1])", "set(lists[0]) == set(lists[1])", "grading"),
    ("a gold that hangs", f"{REWARDS}grading.py", "timeout_s=self._timeout_s / 4", "timeout_s=None", "math_verification"),
    ("0/0", f"{REWARDS}symbolic.py", "not _has_a_value(parsed_gold)", "False", "grading"),
    ("the deadline", f"{REWARDS}killable.py", "deadline - time.monotonic()", "10", "killable"),
    ("what the worker started", f"{REWARDS}killable.py", "os.killpg(process.pid, signal.SIGKILL)", "process.kill()", "killable"),
    ("zombies", f"{REWARDS}killable.py", "            process.wait()\n", "", "killable"),
    ("forks", f"{REWARDS}killable.py", "if self._pid != os.getpid()", "if self._pid is None", "killable"),
    ("the parent's death", f"{REWARDS}worker.py", "while os.getppid() == parent", "while True", "killable"),
    ("the kernel's deadline", f"{REWARDS}worker.py", "int(time.process_time() + timeout_s) + 2", "10_000", "killable"),
    ("the memory limit", f"{REWARDS}worker.py", "_limit(resource.RLIMIT_AS, memory_bytes)", "pass", "killable"),
    ("prints", f"{REWARDS}worker.py", "os.dup2(2, 1)", "pass", "killable"),
    ("retirement", f"{REWARDS}worker.py", "process.memory_info().rss > memory_bytes / 2", "False", "killable"),
    ("accuracy with bad golds", f"{REWARDS}math_verification.py", "len(verdicts) - counts[Verdict.BAD_GOLD]", "len(verdicts)", "math_verification"),
    ("two columns of golds", f"{REWARDS}math_verification.py", "if len(present) != 1", "if not present", "math_verification"),
    ("the last assistant message", "online_sft/rewards/messages.py", "contents[-1]", "contents[0]", "math_verification"),
    ("the overlong slope", f"{REWARDS}overlong.py", "tokens / self.cache_length", "tokens / self.max_completion_length", "overlong"),
    ("the overlong factor", f"{REWARDS}overlong.py", "-self.factor * min", "-min", "overlong"),
    ("unscorable in a sum", f"{REWARDS}combined.py", "if len(scored) < len(parts) or None in gates", "if None in gates", "combined"),
    ("a gate", f"{REWARDS}combined.py", "sum(scored) if all(", "sum(scored) if any(", "combined"),
    ("rows of the sandbox", f"{REWARDS}sandboxed.py", "[value[index]] if", "[value[0]] if", "sandboxed"),
    ("failures as rewards", f"{REWARDS}sandboxed.py", "self.failed if isinstance(result, Failure)", "0.0 if isinstance(result, Failure)", "sandboxed"),
    ("the last tagged answer", f"{REWARDS}reasoning_gym.py", "return tagged[-1]", "return tagged[0]", "reasoning_gym_reward"),
    ("the rank's own slice", ONLINE, "self.accelerator.process_index * size", "0", "distributed"),
    ("too few prompts", PROMPTS, "len(dataset) < num_prompts", "len(dataset) < 1", "online_sft_trainer"),
    ("contradicting golds", TASKS, ".gold != problem.gold:", ".gold is None:", "tasks"),
    ("validation prompts in train", TASKS, "train.items() if text not in shared", "train.items() if text", "tasks"),
    ("golds that differ between splits", TASKS, "for text in shared if", "for text in () if", "tasks"),
    ("the prompt limit", TASKS, "if length <= limit", "if length < limit", "tasks"),
    ("the chat template's tokens", TASKS, "add_generation_prompt=True, ", "", "tasks"),
    ("what is held out", TASKS, "random.Random(seed)", "random.Random(0)", "tasks"),
    ("the only prompt", TASKS, "min(math.ceil(share * len(problems)), max(0, len(problems) - 1))", "math.ceil(share * len(problems))", "tasks"),
    ("validation before test", TASKS, '("validation", "test")', '("test", "validation")', "tasks"),
    ("DAPO's words", LAYOUTS, "on its own line", "on the last line", "tasks"),
    ("GSM8K's commas", LAYOUTS, '.replace(",", "")', "", "tasks"),
    ("the TL;DR prompt", LAYOUTS, "TITLE: {title}\\n\\nPOST", "TITLE: {title}\\nPOST", "tasks"),
    ("the task's defaults against TRL's words", TRAIN, '("max_completion_length",)', "()", "train"),
    ("math's overlong penalty", TRAIN, 'given.get("task_type") == "math"', "False", "train"),
    ("the bias of pass@k", EVALUATION, "((n - c - drawn) / (n - drawn)).prod(-1)", "(1 - c / n).pow(k).squeeze(-1)", "evaluation"),
    ("drawing without replacement", EVALUATION, "/ (n - drawn)", "/ n", "evaluation"),
    ("the bound on k", EVALUATION, "if not 1 <= k <= num_samples:", "if not 1 <= k:", "evaluation"),
    ("ties count in full", EVALUATION, "np.arange(1, ways.shape[1] + 1)", "1", "evaluation"),
    ("ties count for nothing", EVALUATION, "tied = int(size == votes)", "tied = 2 * (size == votes)", "evaluation"),
    ("rivals may have more votes", EVALUATION, "range(min(count, votes, room) + 1)", "range(min(count, room) + 1)", "evaluation"),
    ("the silent vote", EVALUATION, "        if answer is not None:\n            voters", "        if True:\n            voters", "evaluation"),
    ("the silent are drawn", EVALUATION, "math.comb(silent, size) for", "float(size == 0) for", "evaluation"),
    ("equal values vote together", EVALUATION, "answer_key(answer) if answer_key else answer", "answer", "evaluation"),
    ("the share of correct voters", EVALUATION, "sum(votes) / len(votes) * ", "", "evaluation"),
    ("bootstrap over samples", EVALUATION, 'values = {f"avg@{num_samples}": [_pass(prompt, 1) for prompt in scored if prompt.is_correct]}', 'values = {f"avg@{num_samples}": [float(c) for prompt in scored for c in prompt.is_correct]}', "evaluation"),
    ("the level of the interval", EVALUATION, "(1 - level) / 2, (1 + level) / 2", "(1 - level), level", "evaluation"),
    ("the generator of the interval", EVALUATION, "(num_resamples, len(values)), generator=generator)", "(num_resamples, len(values)))", "evaluation"),
    ("unscorable samples are wrong", EVALUATION, "[correct for correct in prompt.is_correct if correct is not None]", "[bool(correct) for correct in prompt.is_correct]", "evaluation"),
    ("prompts with too few samples", EVALUATION, "if len(prompt.is_correct) >= k]", "if prompt.is_correct]", "evaluation"),
    ("torch's random numbers after an evaluation", SAMPLED, "with torch.random.fork_rng(devices=range(torch.cuda.device_count())):", "if True:", IN_SAMPLED),
    ("Python's random numbers after an evaluation", SAMPLED, "random.setstate(python)", "pass", IN_SAMPLED),
    ("numpy's random numbers after an evaluation", SAMPLED, "np.random.set_state(numpy)", "pass", IN_SAMPLED),
    ("the mode after an evaluation", SAMPLED, "module.training = was_training", "pass", IN_SAMPLED),
    ("one mode for all modules after an evaluation", SAMPLED, "module.training = was_training", "module.training = modes[0][1]", IN_SAMPLED),
    ("dropout while sampling", SAMPLED, "    model.eval()\n", "", IN_SAMPLED),
    ("the seed of a batch", SAMPLED, "                set_seed(self._seed_of(number))\n                tokens", "                tokens", IN_SAMPLED),
    ("the seed of the grading", SAMPLED, "                    set_seed(self._seed_of(number))\n", "", IN_SAMPLED),
    ("every batch has its own seed", SAMPLED, "SeedSequence([self.seed, batch])", "SeedSequence([self.seed])", IN_SAMPLED),
    ("the seed that is asked for", SAMPLED, "SeedSequence([self.seed, batch])", "SeedSequence([0, batch])", IN_SAMPLED),
    ("the model's own generation config", SAMPLED, '            "top_k": 0,\n', "", IN_SAMPLED),
    ("the model's own repetition penalty", SAMPLED, '            "repetition_penalty": 1.0,\n', "", IN_SAMPLED),
    ("the sampling temperature", SAMPLED, '"temperature": temperature', '"temperature": 1.0', IN_SAMPLED),
    ("top_p", SAMPLED, '"top_p": top_p', '"top_p": 1.0', IN_SAMPLED),
    ("the padding side of prompts", SAMPLED, 'padding_value=padding, padding_side="left"', 'padding_value=padding, padding_side="right"', IN_SAMPLED),
    ("padding behind the end", SAMPLED, "return ids[: first + 1]", "return ids", IN_SAMPLED),
    ("the rows of the samples", SAMPLED, "sample // self.num_generations for", "sample % len(self.dataset) for", IN_SAMPLED),
    ("the threshold", SAMPLED, "reward > self.correct_above", "reward > 0", IN_SAMPLED),
    ("the metrics that the trainer reads", SAMPLED, "            metrics.update(found)\n", "", IN_SAMPLED),
    ("early stopping before the metrics", SAMPLED, "if any(isinstance(other, EarlyStoppingCallback) for other in earlier):", "if False:", IN_SAMPLED),
    ("tools in an evaluation", SAMPLED, "(trainer.tools or trainer.environment_factories)", "trainer.environment_factories", IN_SAMPLED),
    ("the log of an evaluation", SAMPLED, "            Trainer.log(self.trainer, found)\n", "", IN_SAMPLED),
    ("once for several evaluation sets", SAMPLED, "        if first in metrics:", "        if True:", IN_SAMPLED),
    ("the template's arguments", SAMPLED, "(args.chat_template_kwargs or {}) if", "{} if", IN_SAMPLED),
    ("the generation prompt", SAMPLED, "add_generation_prompt=True", "add_generation_prompt=False", IN_SAMPLED),
    ("spare batches are not counted", SAMPLED, "turn >= num_batches)", "False)", IN_SAMPLED),
    ("as many calls on every rank", SAMPLED, "math.ceil(num_batches / num_ranks)", "(num_batches - rank + num_ranks - 1) // num_ranks", IN_SAMPLED),
    ("samples in order", SAMPLED, "sorted(gather_object(graded), key=lambda one: one.sample)", "gather_object(graded)", IN_SAMPLED),
    ("the key of the vote", SAMPLED, "estimates(prompts, self.ks, answer_key=self.answer_key)", "estimates(prompts, self.ks)", IN_SAMPLED),
    ("no gather", SAMPLED, "gather_object(graded)", "graded", IN_SAMPLED),
    ("the reward model's EOS", NEURAL, "completion + eos if is_finished and eos and not completion.endswith(eos) else completion", "completion", IN_NEURAL),
    ("the EOS twice", NEURAL, "and not completion.endswith(eos) ", "", IN_NEURAL),
    ("the EOS of the unfinished", NEURAL, "if is_finished and eos", "if eos", IN_NEURAL),
    ("finished by its first token", NEURAL, "ids[-1] in self.policy", "ids[0] in self.policy", IN_NEURAL),
    ("the wrong label", NEURAL, "logits[:, 1] - logits[:, 0]", "logits[:, 0] - logits[:, 1]", IN_NEURAL),
    ("label 1 alone", NEURAL, "logits[:, 1] - logits[:, 0]", "logits[:, 1]", IN_NEURAL),
    ("label 0 of two", NEURAL, "logits[:, 1] - logits[:, 0]", "logits[:, 0]", IN_NEURAL),
    ("the sigmoid twice", NEURAL, "score.sigmoid() if", "score.sigmoid().sigmoid() if", IN_NEURAL),
    ("the sigmoid always", NEURAL, "score.sigmoid() if self.use_sigmoid else score", "score.sigmoid()", IN_NEURAL),
    ("padding on the left", NEURAL, "< lengths.unsqueeze(1)", ">= lengths.max() - lengths.unsqueeze(1)", IN_NEURAL),
    ("no attention mask", NEURAL, "mask.long().to(device)", "torch.ones_like(mask).long().to(device)", IN_NEURAL),
    ("the tokenizer's padding token", NEURAL, "pad = self.config.get_text_config().pad_token_id or 0", "pad = self.tokenizer.pad_token_id", IN_NEURAL),
    ("TRL's padding token in the model's config", NEURAL, "        device = self.device or", "        self.config.pad_token_id = self.tokenizer.pad_token_id\n        device = self.device or", IN_NEURAL),
    ("no truncation", NEURAL, "if len(ids) <= limit:", "if True:", IN_NEURAL),
    ("truncation of the end", NEURAL, "ids[:kept] + ids[len(ids) - limit + kept :]", "ids[:limit]", IN_NEURAL),
    ("truncation of BOS", NEURAL, "kept = 1 if ids[0] in first else 0", "kept = 0", IN_NEURAL),
    ("the limit of the tokenizer", NEURAL, "min(self.tokenizer.model_max_length, positions or", "min(10**9, positions or", IN_NEURAL),
    ("the limit of the model", NEURAL, "positions or self.tokenizer.model_max_length)", "10**9)", IN_NEURAL),
    ("the share of the truncated", NEURAL, "len(ids) > limit for", "len(ids) >= limit for", IN_NEURAL),
    ("dropout in a reward model", NEURAL, "        self.model.eval()\n", "", IN_NEURAL),
    ("gradients of a reward model", NEURAL, "with torch.no_grad()", "with torch.enable_grad()", IN_NEURAL),
    ("bfloat16 scores", NEURAL, ".logits.float()", ".logits", IN_NEURAL),
    ("NaN of a reward model", NEURAL, 'if not abs(score) < float("inf")', "if False", IN_NEURAL),
    ("the row of a bad score", NEURAL, "gave row {row} of", "gave row {row % 2} of", IN_NEURAL),
    ("three labels", NEURAL, "num_labels not in (1, 2)", "num_labels < 1", IN_NEURAL),
    ("batches without a padding token", NEURAL, "self.batch_size if self.config.get_text_config().pad_token_id is not None else 1", "self.batch_size", IN_NEURAL),
    ("the chat without its prompt", NEURAL, "self.tokenizer.apply_chat_template(prompt + completion", "self.tokenizer.apply_chat_template(completion", IN_NEURAL),
    ("own EOS ids of the policy", NEURAL, "self.policy_eos_token_ids or policy_eos_token_ids", "policy_eos_token_ids", IN_NEURAL),
    ("preparing reward models", NEURAL, "model=prepare(self.model)", "model=self.model", IN_REWARD_MODELS),
    ("the policy's EOS in the trainer", MODELS, "accelerator.device, trainer.eos_token_ids)", "accelerator.device)", IN_REWARD_MODELS),
    ("reward models in a combination", MODELS, "if isinstance(function, CombinedReward):", "if False:", IN_REWARD_MODELS),
    ("weights of a combination", MODELS, "_placed(part, *place): weight for", "_placed(part, *place): 1.0 for", IN_REWARD_MODELS),
    ("reward_use_sigmoid", MODELS, "args.reward_use_sigmoid, args.reward_max_length)", "False, args.reward_max_length)", IN_REWARD_MODELS),
    ("reward_max_length", MODELS, "args.reward_use_sigmoid, args.reward_max_length)", "args.reward_use_sigmoid)", IN_REWARD_MODELS),
    ("TRL's one label for all", MODELS, "from_pretrained(path, **options", "from_pretrained(path, num_labels=1, **options", IN_REWARD_MODELS),
    ("random score heads", MODELS, 'if report["missing_keys"]', "if False", IN_REWARD_MODELS),
]  # fmt: skip


def killed_by(mutant: tuple[str, str, str, str, str], copy: Path) -> str | None:
    """The first test that fails on the mutant, or None when it survives."""
    _, file, before, after, tests = mutant
    path = copy / file
    source = path.read_text()
    assert source.count(before) >= 1, f"{file} no longer holds {before!r}"
    path.write_text(source.replace(before, after))
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*pytest, f"tests/test_{tests}.py"],
        cwd=copy,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)},
    )
    path.write_text(source)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout + done.stderr)
    failed = [line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0] if failed else None


def main() -> None:
    wanted = sys.argv[1:]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "*_cache", "build"))
        for mutant in MUTANTS:
            if wanted and not any(word in mutant[0] or word in mutant[1] for word in wanted):
                continue
            killer = killed_by(mutant, copy)
            survivors += killer is None
            print(f"{'SURVIVED' if killer is None else 'killed'}  {mutant[0]}  {killer or ''}", flush=True)
    sys.exit(f"{survivors} mutants survived" if survivors else 0)


if __name__ == "__main__":
    main()
