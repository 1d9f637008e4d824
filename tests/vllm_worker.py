"""Trains with a real vLLM and reports what the engine computes then; the tests start it in a process of its own.

python vllm_worker.py OUTPUT.json SPEC.json; the spec: {"model": folder, "url": of a server or null, "runs": [run]},
a run: {"args": {...}, "lora": bool, "broken": how the sync is broken, or null, "model": another folder, "resume": a
checkpoint}. One engine serves all runs.
"""

import json
import os
import sys
from pathlib import Path

from free_port import free_port

PROMPTS = [[5, 6, 7], [3, 4], [8, 2, 9, 4]]


def share_one_engine(**always):
    """All trainers of the process use the engine of the first; each sends it its own weights."""
    import trl.generation.vllm_generation as trl_generation

    build, engines = trl_generation.LLM, []

    def the_engine(**options):
        if not engines:
            engines.append(build(**{**options, **always}))
        return engines[0]

    trl_generation.LLM = the_engine


def reward(completion_ids, **columns):
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


def break_sync(how):
    """Faults as they have happened: nothing is sent, one layer is left out, adapters are not merged."""
    from peft import PeftModel
    from trl.generation.vllm_generation import VLLMGeneration

    if how == "nothing is sent":
        VLLMGeneration.sync_weights = lambda self: None
    elif how == "a layer is left out":
        all_of_them = VLLMGeneration._iter_named_params

        def all_but_one(self):
            return ((name, value) for name, value in all_of_them(self) if ".layers.1." not in name)

        VLLMGeneration._iter_named_params = all_but_one
    elif how == "adapters are not merged":
        PeftModel.merge_adapter = PeftModel.unmerge_adapter = lambda self, **options: None


def unbroken():
    """Everything that `break_sync` replaces, to put it back."""
    from peft import PeftModel
    from trl.generation.vllm_generation import VLLMGeneration

    saved = [(VLLMGeneration, name, getattr(VLLMGeneration, name)) for name in ("sync_weights", "_iter_named_params")]

    def put_back():
        for owner, name, value in saved:
            setattr(owner, name, value)
        for name in ("merge_adapter", "unmerge_adapter"):
            if name in vars(PeftModel):
                delattr(PeftModel, name)

    return put_back


def trainer_for(model, args, lora):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer

    from online_sft import OnlineSFTConfig, OnlineSFTTrainer

    modules = ["q_proj", "v_proj", "o_proj", "down_proj"]
    config = LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM") if lora else None
    data = Dataset.from_list([{"prompt": f"{a} + {b} ="} for a in range(4) for b in range(4)])
    tokenizer = AutoTokenizer.from_pretrained(model)
    return OnlineSFTTrainer(
        model, reward, OnlineSFTConfig(**args), data, processing_class=tokenizer, peft_config=config
    )


def greedy(trainer):
    """Greedy tokens and their log-probs by the engine."""
    generation = trainer.vllm_generation
    if generation.mode == "server":
        found = generation.vllm_client.generate(PROMPTS, temperature=0.0, max_tokens=12)
        return found["completion_ids"], [[x[0] for x in row] for row in found["logprobs"]]
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    found = generation.llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12, logprobs=0), use_tqdm=False)
    outputs = [x.outputs[0] for x in found]
    return [list(x.token_ids) for x in outputs], [[next(iter(d.values())).logprob for d in x.logprobs] for x in outputs]


def compared(trainer, model):
    """Whether the model's greedy tokens are the engine's, and the largest difference of a log-prob."""
    import torch

    is_same, worst = True, 0.0
    for prompt, completion, log_probs in zip(PROMPTS, *greedy(trainer), strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt + completion])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        is_same &= logits.argmax(-1).tolist() == completion  # greedy: each is the likeliest after those before it
        found = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        worst = max(worst, (found - torch.tensor(log_probs)).abs().max().item())
    return {"same_tokens": is_same, "max_dlogp": worst}


def run(model, args, lora, broken, resume=None):
    from transformers import AutoModelForCausalLM

    put_back, trainer = unbroken(), None
    if broken:
        break_sync(broken)
    try:
        trainer = trainer_for(model, args, lora)
        trainer.train(resume_from_checkpoint=resume)
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        with trainer.synced_rollouts() as engine:
            rollouts = engine.generate(["2 + 2 =", "1 + 3 ="], num_generations=2)
            policy = trainer.accelerator.unwrap_model(trainer.model).eval()
            first = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
            # only the main process talks to a server
            has_engine = trainer.accelerator.is_main_process or trainer.vllm_mode == "colocate"
            synced, at_first = (compared(trainer, m) if has_engine else None for m in (policy, first))
        result = {
            "num_processes": trainer.accelerator.num_processes,
            "wrapper": type(trainer.model_wrapped).__name__,
            "synced": synced,
            "at_first": at_first,
            "moved_by_sync": max(
                (value - before[name]).abs().max().item() for name, value in trainer.model.named_parameters()
            ),
            "rollouts": [[r.prompt_ids, r.completion_ids, r.log_probs, r.text] for r in rollouts],
            "policy_version": engine.policy_version,
        }
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    finally:
        put_back()
    result["log"] = [entry for entry in trainer.state.log_history if "loss" in entry] if trainer else []
    return result


def main():
    output, spec = sys.argv[1:]
    spec = json.loads(Path(spec).read_text())
    if spec["url"]:
        import trl_vllm_cpu

        trl_vllm_cpu.patch_trl_client()
        where = {"vllm_mode": "server", "vllm_server_base_url": spec["url"]}
    else:
        where = {"vllm_mode": "colocate", "vllm_max_model_length": 128}
        share_one_engine()
    results = []
    for one in spec["runs"]:
        port = {"vllm_group_port": free_port()} if spec["url"] else {}
        args = {**where, **port, **one.pop("args")}
        results.append(run(**{"model": spec["model"], **one}, args=args))
        print(json.dumps(results[-1])[:2000], flush=True)
    rank = os.environ.get("RANK", "0")  # vLLM sets it where torchrun has not
    Path(output if rank == "0" else f"{output}.{rank}").write_text(json.dumps(results))


if __name__ == "__main__":
    if "RANK" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    main()
