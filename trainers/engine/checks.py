"""What vLLM needs of a model and of its server, found out before anything is loaded."""

from typing import Any

from transformers import AutoConfig
from trl.import_utils import is_vllm_available
from trl.trainer.utils import get_config_model_id

from trainers.engine.server import check_server

__all__ = ["check_engine"]


def check_engine(args: Any, model: Any, *, is_planned: bool = False) -> None:
    """Refuses what would fail later, or hang.

    Args:
        args: an `OnlineSFTConfig`.
        model: the policy, or its path.
        is_planned: it is to run elsewhere: vLLM need not be installed here.

    Raises:
        ValueError: the model is nowhere that vLLM could load it from, or the server cannot serve it (`check_server`).
        ConnectionError: no server answers.
        ImportError: vLLM is not installed.
    """
    if not args.use_vllm:
        return
    path = model if isinstance(model, str) else get_config_model_id(model.config)
    if not path:
        raise ValueError(
            "use_vllm loads the model where the policy came from, and this model was built in memory; save it with "
            "save_pretrained and pass the folder"
        )
    if not is_planned and not is_vllm_available():
        raise ImportError("use_vllm=True needs vLLM: pip install 'online-sft[vllm]', or set use_vllm to false")
    if args.vllm_mode == "server" and args.process_index == 0:
        kwargs = args.model_init_kwargs or {}
        remote = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
        check_server(args, AutoConfig.from_pretrained(path, **remote), path)
