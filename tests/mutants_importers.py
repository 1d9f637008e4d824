"""Breaks of what reads other people's data; see mutants.py."""

I = "online_sft/importers/"  # noqa: E741
CHATS, OPENAI, SWIFT, TINKER, VERL, REWARDS, FORMATS, TABLES, CONVERT = (
    f"{I}{name}.py"
    for name in (
        "chats",
        "openai_chats",
        "ms_swift",
        "tinker_datums",
        "verl",
        "rewards",
        "formats",
        "tables",
        "convert",
    )
)
ROWS, FILES = "importers", "convert"

OF_IMPORTERS = [
    ("the weight of the others' messages", CHATS, 'if message["role"] == "assistant" else 0.0', 'if message["role"] == "assistant" else 1.0', ROWS),
    ("a weight that is left out", OPENAI, 'message.get("weight", 1)', 'message.get("weight", 0)', ROWS),
    ("a weight of the user", OPENAI, 'if message["role"] != "assistant" and "weight" in message:', "if False:", ROWS),
    ("true as a weight", OPENAI, "isinstance(weight, bool) or weight not in (0, 1)", "weight not in (0, 1)", ROWS),
    ("the role developer", OPENAI, 'message["role"] = "system"', "pass", ROWS),
    ("weights of other formats", CHATS, "if key in given and key not in weight_keys:", "if False:", ROWS),
    ("what templates do not render", CHATS, "for key, reason in _NOT_READ.items():", "for key, reason in ():", ROWS),
    ("a scale without loss", SWIFT, "return scale if loss else 0.0", "return scale", ROWS),
    ("a loss that is a number", SWIFT, "if loss not in (0, 1):", "if False:", ROWS),
    ("a scale below 0", SWIFT, "if scale < 0:", "if False:", ROWS),
    ("two weights in a turn", SWIFT, 'if before["weight"] != message["weight"]:', "if False:", ROWS),
    ("the order of a history", SWIFT, "[*history, [row.get(\"query\"), response]]", "[[row.get(\"query\"), response], *history]", ROWS),
    ("the shift of a Datum's weights", TINKER, "[0.0, *factors]", "[*factors, 0.0]", ROWS),
    ("the shift of a Datum's labels", TINKER, "[-100, *(target if trained else -100 for target, trained in zip(targets, is_trained, strict=True))]", "[*(target if trained else -100 for target, trained in zip(targets, is_trained, strict=True)), -100]", ROWS),
    ("the shift of a Datum's log-probs", TINKER, "[0.0, *log_probs]", "[*log_probs, 0.0]", ROWS),
    ("the last target", TINKER, "[*tokens, targets[-1]]", "[*tokens, tokens[-1]]", ROWS),
    ("the mask of a Datum", TINKER, "_is_trained(factors, masks=others)", "_is_trained(factors, masks={})", ROWS),
    ("tokens of weight 0", TINKER, "[factor != 0 for factor in factors]", "[True for factor in factors]", ROWS),
    ("what a mask leaves out", TINKER, "if factor and not bit:", "if False:", ROWS),
    ("targets that are not moved", TINKER, "if is_trained[t] and target != following:", "if False:", ROWS),
    ("a reward beside a score", VERL, 'if row.get("reward", reward) != reward:', "if False:", ROWS),
    ("two golds", VERL, "rest = {", 'rest = {"reward_model": judge} | {', ROWS),
    ("two answers", REWARDS, "if len(present) != 1:", "if not present:", ROWS),
    ("columns with a meaning", FORMATS, "if taken := sorted(", "if taken := 0 * sorted(", ROWS),
    ("columns that are kept", FORMATS, "return {**made, **kept}", "return made", ROWS),
    ("preference data", FORMATS, "if found := [column for column in _PREFERENCES if column in columns]:", "if found := []:", ROWS),
    ("the surest format", FORMATS, "if num == most > 0", "if num > 0", ROWS),
    ("NaN", FORMATS, "if math.isfinite(value) else", "if True else", ROWS),
    ("a key twice", TABLES, "if len(row) < len(pairs):", "if False:", FILES),
    ("a byte order mark", TABLES, 'line.removeprefix(b"\\xef\\xbb\\xbf")', "line", FILES),
    ("the number of a line", TABLES, "enumerate(file, 1)", "enumerate(file)", FILES),
    ("columns of later rows", TABLES, "for row in rows for name in row", "for row in rows[:1] for name in row", FILES),
    ("types of later rows", TABLES, "            schema = _unified(schema, chunk)", "            schema = schema or _unified(schema, chunk)", FILES),
    ("rows that wait on the disk", TABLES, "for chunk in _chunks(rows):", "for chunk in [list(rows)]:", FILES),
    ("rows that are put aside", CONVERT, 'rejected.write(json_line({"place"', 'bytes(json_line({"place"', FILES),
    ("rows that are skipped unasked", CONVERT, "rejected if skip_bad_rows else None", "rejected", FILES),
    ("an old file of rejects", CONVERT, "rejects.unlink(missing_ok=True)", "pass", FILES),
    ("a file without rows", CONVERT, "if done.num_read == done.num_rejected:", "if False:", FILES),
]  # fmt: skip
