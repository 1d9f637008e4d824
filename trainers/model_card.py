"""What a model card says of how its model was trained."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["run_sections"]

_NOT_REPORTED = ("_low", "_high", "_runtime", "_per_second")


def run_sections(setup: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]]) -> str:
    """Method, data, evaluation, configuration, and how to do it again, as sections in Markdown.

    Args:
        setup: of `trainers.recording.setup.setup_of_run`.
        log_history: of the trainer's state.
    """
    sections = {
        "What was optimised": _method(setup),
        "Data": _data(setup["data"]),
        "Evaluation": _evaluation(log_history),
        "Configuration": ["All that is not at its default:", "", *_fenced("yaml", _changed(setup))],
        "Reproduce": [
            *_fenced("sh", [setup["command"]]),
            "",
            f"With {_listed(setup['versions'].items())}, on {_hardware(setup['hardware'])}.",
        ],
    }
    return "".join(f"\n## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections.items() if lines)


def _method(setup: Mapping[str, Any]) -> list[str]:
    lines = [setup["objective"] + "."]
    if setup["rewards"]:
        lines += ["", f"Rewards: {', '.join(f'`{name}`' for name in setup['rewards'])}."]
    if setup["ledger"] is not None:
        entries = [f"- `{bias['option']}={bias['value']}`: {bias['effect']}" for bias in setup["ledger"]]
        lines += ["", "Options in force that bias its gradient or change it:", "", *(entries or ["- none"])]
    return lines


def _data(data: Mapping[str, Any]) -> list[str]:
    if data["rows"] is None:
        return [f"{data['kind'].capitalize()}: its rows were not counted."]
    digest = f"SHA-256 `{data['sha256']}`" if data["sha256"] else "too many for a digest"
    return [f"{data['rows']:,} rows as the trainer reads them, {digest}."]


def _evaluation(log_history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last value of each metric of the evaluation, with its interval where it has one."""
    last = {name: (entry["step"], value) for entry in log_history for name, value in entry.items()}
    rows = []
    for name, (step, value) in last.items():
        if not name.startswith("eval_") or name.endswith(_NOT_REPORTED) or not isinstance(value, (int, float)):
            continue
        ends = [last[f"{name}{end}"][1] for end in ("_low", "_high") if f"{name}{end}" in last]
        interval = f"{ends[0]:.4g} to {ends[1]:.4g}" if len(ends) == 2 else ""
        rows.append(f"| `{name}` | {value:.4g} | {interval} | {step} |")
    return ["| metric | value | 95 % interval | at step |", "|---|---|---|---|", *rows] if rows else []


def _changed(setup: Mapping[str, Any]) -> Iterable[str]:
    """JSON, which is YAML too."""
    values = {name: setup["configuration"].get(name) for name in setup["changed"]}
    return (f"{name}: {json.dumps(value, default=str)}" for name, value in sorted(values.items()))


def _hardware(hardware: Mapping[str, Any]) -> str:
    where = _listed(hardware["gpus"]) if hardware["gpus"] else f"{hardware['cpu_cores']} cores of {hardware['cpu']}"
    return f"{hardware['processes']} process{'' if hardware['processes'] == 1 else 'es'}, {where}"


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(item if isinstance(item, str) else " ".join(item) for item in items)


def _fenced(language: str, lines: Iterable[str]) -> list[str]:
    return [f"```{language}", *lines, "```"]
