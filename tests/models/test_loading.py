"""Folders from strangers: weights are data, adapters are merged, what cannot work is one line."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel, load, load_config, load_tokenizer, save
from tiny import VOCABULARY, spread, tiny_lm, tiny_model, tokenizer

IDS = torch.tensor([[3, 4, 5, 9]])
peft_asks = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def same(found: LanguageModel, expected: LanguageModel) -> None:
    torch.testing.assert_close(logits(found.model), logits(expected.model), atol=1e-5, rtol=1e-5)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused, within seconds."""
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load(folder, device="cpu")
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


# Weights.


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('opened')",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_never_opened(name: str, tmp_path: Path):
    save(tiny_lm(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, tmp_path / name)
    assert f"found {name}, a pickle, which can run code" in refusal(tmp_path)


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path):
    save(tiny_lm(), tmp_path)
    torch.save({"weight": Trap()}, tmp_path / "pytorch_model.bin")
    same(load(tmp_path, device="cpu"), tiny_lm())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../outside.safetensors", "in its own folder"),
        ("/etc/passwd.safetensors", "in its own folder"),
        ("a/../../x.safetensors", "in its own folder"),
        ("..\\x.safetensors", "in its own folder"),
        ("part.bin", "expected names of safetensors files"),
        ("missing.safetensors", "the download may be incomplete"),
    ],
)
def test_an_index_names_files_of_its_own_folder(name: str, problem: str, tmp_path: Path):
    lm, folder = tiny_lm(), tmp_path / "model"
    lm.model.save_pretrained(folder, max_shard_size="10KB")
    lm.tokenizer.save_pretrained(folder)
    same(load(folder, device="cpu"), lm)
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "outside.safetensors")
    first = next(iter(found["weight_map"]))
    found["weight_map"][first] = name
    index.write_text(json.dumps(found))
    assert problem in refusal(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_codes_of_a_quantiser_are_not_taken_for_weights(kind: torch.dtype, tmp_path: Path):
    save(tiny_lm(), tmp_path)
    own = tiny_model().state_dict()
    codes = {n: w.to(kind) if n.endswith("q_proj.weight") else w for n, w in own.items()}
    save_file(codes, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "without a quantization_config" in refusal(tmp_path)
    counts = {"model.position_ids": torch.arange(9)}  # a buffer of old checkpoints
    save_file(own | counts, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same(load(tmp_path, device="cpu"), tiny_lm())


@pytest.mark.parametrize(
    ("ends", "kept"),
    [([1, 7], (1, 7)), ([1, 999, -1], (1,)), (-1, (1,)), ([[1, 2]], (1,)), ("7", (1,))],
)
def test_ends_that_are_no_tokens_of_the_model_do_not_count(
    ends: Any, kept: tuple[int, ...], tmp_path: Path
):
    save(tiny_lm(), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert load(tmp_path, device="cpu").end_ids == kept


def test_code_that_a_checkpoint_brings_is_not_run(tmp_path: Path, capsys: Any):
    save(tiny_lm(), tmp_path)
    (tmp_path / "modeling_x.py").write_text("raise SystemExit('run')")
    auto = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    edit(tmp_path, auto_map=auto)
    same(load(tmp_path, device="cpu"), tiny_lm())
    edit(tmp_path, model_type="x")
    assert "needs code of its own, which is never run" in refusal(tmp_path)
    assert "Do you wish" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        lambda folder: (folder / "config.json").write_text('{"a":' * 100_000),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: edit(folder, num_hidden_layers=10**9),
        lambda folder: edit(folder, text_config={"num_experts": 10**12}),
        lambda folder: edit(folder, hidden_size=10**15),
        lambda folder: edit(folder, hidden_size="wide"),
        lambda folder: edit(folder, hidden_act="unknown"),
        lambda folder: edit(folder, num_attention_heads=0),
        lambda folder: edit(folder, vocab_size=-5),
        lambda folder: edit(folder, model_type="unknown"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
        lambda folder: (folder / "tokenizer_config.json").write_text("[" * 100_000),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"{}"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_folders_end_in_one_line_at_once(damage: Callable[[Path], object], tmp_path: Path):
    save(tiny_lm(), tmp_path)
    damage(tmp_path)
    assert "expected" in refusal(tmp_path)


def test_a_padding_id_beyond_the_embedding_is_no_obstacle(tmp_path: Path):
    save(tiny_lm(), tmp_path)
    edit(tmp_path, pad_token_id=VOCABULARY)
    lm = load(tmp_path, device="cpu")
    same(lm, tiny_lm())
    save(lm, tmp_path / "again")
    assert load(tmp_path / "again", device="cpu").pad_id == 1


def test_sampling_fields_of_a_greedy_generation_config_do_not_stop_saving(tmp_path: Path):
    lm = tiny_lm()
    config: Any = lm.model.generation_config
    config.temperature, config.top_p, config.do_sample = 0.6, 0.9, False
    save(lm, tmp_path)
    assert load(tmp_path, device="cpu").end_ids == (1,)


# Architectures.


def test_encoder_decoders_are_refused_in_one_line(tmp_path: Path):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = AutoConfig.for_model("t5", vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    found = refusal(tmp_path)
    assert "found T5ForConditionalGeneration, an encoder-decoder" in found


def test_what_a_folder_says_of_itself_cannot_act_in_a_terminal(tmp_path: Path):
    save(tiny_lm(), tmp_path)
    edit(tmp_path, architectures=["\x1b[2Jx\nForMaskedLM"])
    assert "found \\x1b[2Jx\\nForMaskedLM, which was" in refusal(tmp_path)
    edit(tmp_path, model_type="\x1b[2J")
    assert "\x1b" not in refusal(tmp_path)


@pytest.mark.parametrize("task", ["BertForMaskedLM", "LlamaForSequenceClassification"])
def test_other_tasks_are_refused_in_one_line(task: str, tmp_path: Path):
    save(tiny_lm(), tmp_path)
    edit(tmp_path, architectures=[task])
    assert f"found {task}, which was trained for another task" in refusal(tmp_path)


def test_an_architecture_without_a_causal_form_is_refused_in_one_line(tmp_path: Path):
    save(tiny_lm(), tmp_path)
    edit(tmp_path, model_type="vit", architectures=["ViTModel"])
    assert "found ViTModel; transformers has no causal language model of it" in refusal(tmp_path)


TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def multimodal(model_type: str, text_type: str, vision_type: str, **more: Any) -> Any:
    """A tiny random model of images and text."""
    config = AutoConfig.for_model(
        model_type,
        text_config=AutoConfig.for_model(text_type, **TEXT).to_dict(),
        vision_config=AutoConfig.for_model(vision_type, **VISION).to_dict(),
        **more,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    return spread(model, 0.3)


WRAPPERS = [
    ("gemma3", "gemma3_text", "siglip_vision_model", {"mm_tokens_per_image": 4}),
    ("mistral3", "mistral", "pixtral", {}),
    ("llava", "llama", "clip_vision_model", {}),
]


@pytest.mark.parametrize(("model_type", "text", "vision", "more"), WRAPPERS)
def test_of_a_multimodal_model_the_text_part_is_used(
    model_type: str, text: str, vision: str, more: dict[str, Any], tmp_path: Path
):
    whole = multimodal(model_type, text, vision, **more)
    save(LanguageModel(whole, tokenizer(), "whole"), tmp_path)
    assert load_config(tmp_path).num_hidden_layers == 2
    lm = load(tmp_path, device="cpu")
    assert type(lm.model).__name__.endswith("ForCausalLM")
    torch.testing.assert_close(logits(lm.model), logits(whole), atol=1e-5, rtol=1e-5)
    save(lm, tmp_path / "text")
    again = load(tmp_path / "text", device="cpu")
    assert again.model.config.model_type == text
    torch.testing.assert_close(logits(again.model), logits(whole), atol=1e-5, rtol=1e-5)


# Adapters.


def adapter(folder: Path, base: Path, **options: Any) -> Any:
    """Saves a trained adapter of a base, as peft does; returns the adapted network."""
    from peft import LoraConfig, get_peft_model

    save(tiny_lm(), base)
    config = LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    adapted: Any = get_peft_model(tiny_model(), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.5)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return adapted.eval()


@peft_asks
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "r": 4}])
def test_an_adapter_is_merged_into_its_base(options: dict[str, Any], tmp_path: Path):
    adapted = adapter(tmp_path / "adapter", tmp_path / "base", **options)
    assert not torch.allclose(logits(adapted), logits(tiny_model()), atol=1e-2)
    lm = load(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(lm.model), logits(adapted), atol=1e-5, rtol=1e-4)
    assert type(lm.model) is type(tiny_model())
    assert load_tokenizer(tmp_path / "adapter").get_vocab() == tokenizer().get_vocab()
    assert load_config(tmp_path / "adapter").num_hidden_layers == 3
    save(lm, tmp_path / "whole")
    shutil.rmtree(tmp_path / "base")
    again = load(tmp_path / "whole", device="cpu")
    same(again, lm)


@peft_asks
def test_an_adapter_may_bring_tokens_of_its_own(tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    save(tiny_lm(tie_word_embeddings=False), tmp_path / "base")
    model = tiny_model(tie_word_embeddings=False)
    model.resize_token_embeddings(VOCABULARY + 3)
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted: Any = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    lm = load(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(lm.model), logits(adapted.eval()), atol=1e-5, rtol=1e-4)
    assert lm.model.get_input_embeddings().weight.shape[0] == VOCABULARY + 3


@peft_asks
def test_a_base_that_is_not_there_is_named_with_what_to_write(tmp_path: Path):
    adapter(tmp_path / "adapter", tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    assert "or hub:NAME for one on the Hugging Face hub" in refusal(tmp_path / "adapter")


@peft_asks
def test_adapters_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "adapter"
    adapter(folder, tmp_path / "base")
    config = folder / "adapter_config.json"
    own = json.loads(config.read_text())
    config.write_text(json.dumps(own | {"task_type": "SEQ_CLS"}))
    assert "found one for SEQ_CLS" in refusal(folder)
    config.write_text(json.dumps(own | {"base_model_name_or_path": None}))
    assert "expected base_model_name_or_path, found none" in refusal(folder)
    config.write_text(json.dumps(own | {"r": 3}))
    assert "expected an adapter that fits its base" in refusal(folder)
    config.write_text(json.dumps(own))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        assert "pip install 'tdistill[peft]'" in refusal(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "found adapter_model.bin, a pickle" in refusal(folder)


@peft_asks
def test_prompts_that_were_tuned_cannot_be_merged(tmp_path: Path):
    from peft import PromptTuningConfig, get_peft_model

    save(tiny_lm(), tmp_path / "base")
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    tuned: Any = get_peft_model(tiny_model(), config)
    tuned.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "adapter")
    assert "can be merged, found PROMPT_TUNING" in refusal(tmp_path / "adapter")
