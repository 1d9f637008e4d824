"""Which charts a report has: what is logged, in the order in which one looks at it, and nothing left out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from online_sft.metric_reference import metric_of
from online_sft.record.sections import SECTIONS

__all__ = ["Chart", "charts_of"]


@dataclass(frozen=True)
class Chart:
    """Metrics over the steps of a run.

    `kind` is "lines"; "band", whose first and last line bound an area; or "stack", whose lines are parts of a whole.
    """

    section: str
    title: str
    unit: str
    meaning: str
    lines: tuple[str, ...]
    kind: str = "lines"


# (section, title, metrics, kind); a metric is shown where it is named first, and otherwise in a chart of its own
_TOGETHER = (
    ("Learning", "reward", ("reward",), "lines"),
    ("Learning", "spread of the rewards", ("reward_std",), "lines"),
    ("Learning", "score", ("score",), "lines"),
    ("Learning", "loss", ("loss", "eval_loss"), "lines"),
    ("Learning", "loss of actions and observations", ("bc_loss", "world_model_loss"), "lines"),
    ("Policy", "KL from the reference", ("kl", "kl_k3"), "lines"),
    ("Policy", "entropy", ("entropy",), "lines"),
    ("Policy", "log-prob of a completion", ("log_prob",), "lines"),
    ("Weights", "weight w = A / s: median, 5 to 95 %", ("weight/q05", "weight/q50", "weight/q95"), "band"),
    ("Weights", "advantage", ("advantage",), "lines"),
    ("Weights", "effective sample size", ("ess", "importance/ess"), "lines"),
    ("Weights", "largest weight, negative gradient", ("max_weight_share", "negative_gradient_share"), "lines"),
    ("Weights", "nll, of all and of negative weights", ("nll", "negative_nll"), "lines"),
    ("Weights", "importance ratio", ("importance/min", "importance/max"), "lines"),
    ("Weights", "tokens clipped", ("importance/clipped",), "lines"),
    (
        "Completions",
        "length: mean, shortest to longest",
        ("completions/min_length", "completions/mean_length", "completions/max_length"),
        "band",
    ),
    (
        "Completions",
        "length of those that ended: mean, shortest to longest",
        tuple(f"completions/{which}_terminated_length" for which in ("min", "mean", "max")),
        "band",
    ),
    ("Completions", "truncated", ("completions/clipped_ratio", "unscorable"), "lines"),
    (
        "Groups",
        "groups",
        ("groups/kept", "groups/refilled", "groups/all_correct", "groups/all_wrong", "frac_reward_zero_std"),
        "lines",
    ),
    ("Time", "seconds of an optimizer step", tuple(f"seconds/{name}" for name in SECTIONS), "stack"),
    ("Time", "tokens a second", ("tokens_per_second",), "lines"),
    ("Time", "memory", ("memory_gib",), "lines"),
    ("Time", "seconds of a micro-batch, as TRL counts", ("step_time",), "lines"),
    ("Time", "share of the time in weight syncs", ("weight_sync/share_of_time",), "lines"),
    ("Optimizer", "gradient norm", ("grad_norm",), "lines"),
    ("Optimizer", "learning rate", ("learning_rate",), "lines"),
)
# of whole runs and of the axis
_NOT_SHOWN = {"step", "epoch", "num_tokens", "total_flos", "runtime", "samples_per_second", "steps_per_second"}
_SECTION_OF = {"eval": "Evaluation", "rewards": "Learning", "completions": "Completions", "groups": "Groups"}
_SECTION_OF |= {"importance": "Weights", "weight_sync": "Time", "collect": "Collection", "atropos": "Atropos"}


def charts_of(names: Iterable[str]) -> list[Chart]:
    """The charts of what was logged; every metric but those of the whole run is in one of them."""
    left = {name for name in names if not _is_of_the_run(name)}
    charts = []
    is_online = "reward" in left  # the value of whose loss says nothing
    for section, title, lines, kind in _TOGETHER:
        section = "Optimizer" if is_online and title == "loss" else section
        logged = tuple(name for name in lines if name in left)
        if logged:
            left -= set(logged)
            is_whole = kind == "stack" or len(logged) == len(lines)
            charts.append(_chart(section, title, logged, kind if is_whole else "lines"))
    charts.extend(_of_intervals(left))
    charts.extend(_chart(_section_of(name), name, (name,), "lines") for name in sorted(left))
    order = list(dict.fromkeys(["Learning", "Evaluation", *(each[0] for each in _TOGETHER)]))
    return sorted(charts, key=lambda chart: order.index(chart.section) if chart.section in order else len(order))


def _of_intervals(left: set[str]) -> Iterator[Chart]:
    """Estimates with the ends of their intervals, which are taken out of `left`."""
    for name in sorted(name for name in left if {f"{name}_low", f"{name}_high"} <= left):
        left -= {name, f"{name}_low", f"{name}_high"}
        yield _chart(_section_of(name), f"{name}, 95 % interval", (f"{name}_low", name, f"{name}_high"), "band")


def _chart(section: str, title: str, lines: tuple[str, ...], kind: str) -> Chart:
    known = {name: metric for name in lines if (metric := metric_of(name)) is not None}
    unit = next((metric.unit for metric in known.values()), "")
    meanings = [f"{name}: {metric.meaning} ({metric.unit})" for name, metric in known.items()]
    return Chart(section, title, "" if unit == "-" else unit, "\n".join(meanings), lines, kind)


def _section_of(name: str) -> str:
    first = name.split("/")[0] if "/" in name else name.split("_")[0]
    return _SECTION_OF.get(first, "Other")


def _is_of_the_run(name: str) -> bool:
    return name.removeprefix("eval_") in _NOT_SHOWN or name.startswith("train_")
