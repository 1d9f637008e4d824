"""Records of runs that were never run, for what reads them."""

from online_sft.record.folder import RecordFolder
from online_sft.record.sample import Sample

HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror="document.title=`owned`"> \u2028 \U0001f600'
)


def setup(**changes):
    """What a run says of itself."""
    return {
        "trainer": "OnlineSFTTrainer",
        "objective": "E[r]",
        "ledger": [],
        "model": "tiny",
        "parameters": 1000,
        "trained_parameters": 1000,
        "rewards": ["math"],
        "data": {"kind": "a data set", "rows": 100, "sha256": "ab" * 32},
        "configuration": {"learning_rate": 1e-3, "seed": 0, "output_dir": "out"},
        "changed": ["learning_rate"],
        "versions": {"online-sft": "0", "python": "3.11"},
        "hardware": {"processes": 1, "gpus": [], "cpu": "a CPU"},
        "command": "online-sft online",
        "began": 1000.0,
        "resumed_at": [],
        **changes,
    }


def write_run(output_dir, *, num_steps=40, texts=("right", "Wrong"), **changes):
    """A run whose reward rises, with two samples a step; the first of each step is right."""
    folder = RecordFolder(output_dir)
    folder.begin(setup(**changes), step=0)
    for step in range(1, num_steps + 1):
        right = 100 * step // num_steps
        costs = {"seconds/rollout": 2.0, "seconds/train": 1.0, "tokens_per_second": 100.0, "memory_gib": 1.0}
        metrics = {"reward": right / 100, "kl": 0.01 * step, "loss": 1.0, "num_tokens": 10 * step, **costs}
        metrics |= {"weight/q05": -1.0, "weight/q50": 0.0, "weight/q95": 1.0, "my/own": float(step)}
        rewards = [(0.0, 100 - right), (1.0, right)]
        folder.add_entry({"step": step, "time": 1000.0 + 3 * step, "metrics": metrics, "rewards": rewards})
        values = ({"reward": 1.0, "advantage": 0.5}, {"reward": 0.0, "advantage": -0.5})
        folder.add_samples(
            Sample(step, ("Q:", f" {step}", f" {text}", "\n"), (None, None, v["advantage"], 0.0), v)
            for text, v in zip(texts, values, strict=True)
        )
