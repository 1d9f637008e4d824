"""The `args` of a trainer: ours, or our defaults when there are none."""

from typing import Any, TypeVar

from trl.trainer.utils import get_config_model_id

__all__ = ["config_or_default"]

Config = TypeVar("Config")


def config_or_default(args: Config | None, config_class: type[Config], model: Any) -> Config:
    """`args`, or a default `config_class` that writes to "<model>-<method>", as TRL's trainers do.

    Raises:
        ValueError: when `args` is a config of another kind, TRL's own for example, which lacks our fields and checks.
    """
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return config_class(f"{name.split('/')[-1]}-{config_class.__name__.removesuffix('Config')}")  # type: ignore[call-arg]
    if not isinstance(args, config_class):
        article = "an" if config_class.__name__[0] in "AEIOU" else "a"
        raise ValueError(f"args must be {article} {config_class.__name__}; got {type(args).__name__}")
    return args
