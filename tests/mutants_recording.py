"""Breaks of the record, the view, the card and the report; see mutants.py."""

OF_RUN, RECORD, PAGES = "trainers/recording/", "online_sft/record/", "online_sft/report/"
SAMPLES, RECORDER, COSTS, SETUP, RECORDED, STOPWATCH, LIVE = (
    f"{OF_RUN}{name}.py" for name in ("samples", "recorder", "costs", "setup", "recorded", "stopwatch", "live_view")
)
FOLDER, SAMPLE, TERMINAL = (f"{RECORD}{name}.py" for name in ("folder", "sample", "terminal"))
CHARTS, CONTENT, PAGE, SCRIPT = (f"{PAGES}{name}" for name in ("charts.py", "content.py", "page.py", "page.js"))
ONLINE, CARD = "trainers/online_sft_trainer.py", "trainers/model_card.py"
RECORDING, REPORT, BROWSER, VIEW = "recording", "report", "report_in_a_browser", "live_view"

OF_RECORDING = [
    ("the sign of the recorded weights", ONLINE, "completion_samples(step, inputs, -slopes", "completion_samples(step, inputs, slopes", RECORDING),
    ("the weights of what is unscorable", ONLINE, 'self._terms(log_probs, inputs)[0].loss.masked_fill(inputs["advantages"].isnan(), 0.0)', "self._terms(log_probs, inputs)[0].loss", RECORDING),
    ("a prompt's padding", SAMPLES, '[inputs["prompt_mask"][row].bool()]', "", RECORDING),
    ("sequences of a packed row", SAMPLES, "(sequences[row] == sequence) & is_there[row]", "is_there[row]", RECORDING),
    ("padding of a row", SAMPLES, "(sequences[row] == sequence) & is_there[row]", "sequences[row] == sequence", RECORDING),
    ("the first token's weight", SAMPLES, "weights = F.pad(weights, (offset, 0))", "weights = F.pad(weights, (0, offset))", RECORDING),
    ("weights of trajectories before their denominators", "trainers/trajectories/kinds.py", "return weights / scale_of.to(weights.dtype)[kinds]", "return weights", RECORDING),
    ("samples enough", RECORDER, "room = self._trainer.args.record_samples - num_kept", "room = self._trainer.args.record_samples", RECORDING),
    ("rewards exactly", RECORDER, "if len(values) > _MOST_VALUES:", "if True:", RECORDING),
    ("what happens again is forgotten", FOLDER, 'if line["step"] <= step]', "]", RECORDING),
    ("another run's record", FOLDER, "if step == 0 and self._folder.exists():", "if False:", RECORDING),
    ("a cut line", FOLDER, 'if line.endswith("\\n"):', "if True:", RECORDING),
    ("JSON without NaN", FOLDER, "return None if isinstance(value, float) and not math.isfinite(value) else value", "return value", RECORDING),
    ("when a run began", FOLDER, '"began": before["began"], ', "", RECORDING),
    ("runs of weights", SAMPLE, "len(list(run))", "1", RECORDING),
    ("sections within sections", STOPWATCH, "self._enter(outer)", 'self._enter("train")', RECORDING),
    ("rollouts of an evaluation", STOPWATCH, 'section if self._section != "evaluation" else "evaluation"', "section", RECORDING),
    ("seconds of a step", COSTS, "value / max(step - self._step, 1)", "value", RECORDING),
    ("tokens since the last entry", COSTS, "(num_tokens - self._num_tokens) / sum", "num_tokens / sum", RECORDING),
    ("seconds of rollouts", ONLINE, 'with self.stopwatch("rollout"):', "if True:", RECORDING),
    ("a digest of slices", SETUP, "table.take(pa.array(range(len(table)))).combine_chunks()", "table.combine_chunks()", RECORDING),
    ("secrets in the command", SETUP, '"***" if "=" not in before and _is_secret(before) else word', "word", RECORDING),
    ("secrets behind an equals sign", SETUP, "if equals and _is_secret(name):", "if False:", RECORDING),
    ("characters of several tokens", "trainers/token_texts.py", "_UNKNOWN in text and len(pending) < _LONGEST", "False and len(pending) < _LONGEST", RECORDING),
    ("the ends of intervals", CARD, 'for end in ("_low", "_high")', 'for end in ("_high", "_low")', "model_card"),
    ("what is not at its default", SETUP, "if getattr(args, name) != default]", "]", "model_card"),
    ("the ledger in the card", CARD, '*(entries or ["- none"])', '"- none"', "model_card"),
    ("seconds to go", TERMINAL, "(self.num_steps - self.step) if done", "self.num_steps if done", VIEW),
    ("a resumed run's speed", TERMINAL, "done = self.step - self.first_step", "done = self.step", VIEW),
    ("the order of a curve", TERMINAL, "(mean - low) / (high - low)", "(high - mean) / (high - low)", VIEW),
    ("escape sequences in samples", TERMINAL, "text.append(visible(token)", "text.append(token", VIEW),
    ("lines now and then", LIVE, "time.monotonic() - self._last_line >= _SECONDS_PER_LINE", "True", VIEW),
    ("the bar that is replaced", RECORDED, "self.remove_callback(ProgressCallback)", "pass", VIEW),
    ("the view that is switched off", RECORDED, 'self.args.live_view == "auto" and has_bar', "has_bar", VIEW),
    ("every metric in a chart", CHARTS, 'charts.extend(_chart(_section_of(name), name, (name,), "lines") for name in sorted(left))', "pass", REPORT),
    ("a metric in one chart", CHARTS, "left -= set(logged)", "pass", REPORT),
    ("intervals as bands", CHARTS, "charts.extend(_of_intervals(left))", "pass", REPORT),
    ("a band without an end", CHARTS, "kind if is_whole else \"lines\"", "kind", REPORT),
    ("the loss of online SFT", CHARTS, '"Optimizer" if is_online and title == "loss" else section', "section", REPORT),
    ("shares of a column", CONTENT, "+= count / whole", "+= count", REPORT),
    ("evenly thinned", CONTENT, "samples[index * len(samples) // number]", "samples[index]", REPORT),
    ("what differs", CONTENT, "any(value != values[0] for value in values)", "False", REPORT),
    ("long runs of one weight", CONTENT, "min(length - start, _LARGEST)", "_LARGEST", REPORT),
    ("UTF-16", CONTENT, 'len(token.encode("utf-16-le", "surrogatepass")) // 2', "len(token)", REPORT),
    ("a text that ends the script", PAGE, '.replace("<", "\\\\u003c")', "", REPORT),
    ("the policy against requests", f"{PAGES}page.html", "default-src 'none'; ", "", REPORT),
    ("text as HTML", SCRIPT, "element(\"span\", { textContent: text, title:", "element(\"span\", { innerHTML: text, title:", BROWSER),
    ("smoothing without bias", SCRIPT, "return mean / mass;", "return mean;", BROWSER),
    ("zooming all charts", SCRIPT, "Promise.all(plots.filter((plot) => !plot.isHeatmap).map((plot) => plot.draw()))", "Promise.resolve()", BROWSER),
    ("search in any case", SCRIPT, "sample.text.toLowerCase().includes(words)", "sample.text.includes(words)", BROWSER),
    ("the largest first", SCRIPT, 'byId("descending").checked ? -1 : 1', "1", BROWSER),
    ("arrow keys", SCRIPT, "select(browser.selected + moves[event.key]);", "", BROWSER),
    ("a list that grows", SCRIPT, "while (browser.shown <= browser.selected) showMore();", "", BROWSER),
    ("charts in the dark", SCRIPT, '  document.documentElement.dataset.theme = isDark ? "light" : "dark";\n  redraw();', '  document.documentElement.dataset.theme = isDark ? "light" : "dark";', BROWSER),
    ("colours by weight", SCRIPT, 'weight > 0 ? "positive" : "negative"', '"positive"', BROWSER),
]  # fmt: skip
