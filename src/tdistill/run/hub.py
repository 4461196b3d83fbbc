"""The student's folder on its way to the hub: what would be sent, and sending it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tdistill import __version__
from tdistill.errors import InvalidValueError, ModelError, one_line
from tdistill.run.folders import STUDENT, resolved_recipe
from tdistill.run.origin import CARD, license_in

_SENT = (".safetensors", ".json", ".jinja", ".md", ".txt", ".model")
_ENDPOINT = "HF_ENDPOINT"


@dataclass(frozen=True)
class Upload:
    """What would be sent where.

    Attributes:
        folder: of the student.
        repository: OWNER/NAME.
        private: whether only its owner sees it.
        files: names and bytes.
        left_out: names of files that are not of a model.
    """

    folder: Path
    repository: str
    private: bool
    files: dict[str, int]
    left_out: tuple[str, ...]

    @property
    def license(self) -> str | None:
        """What the card says."""
        return license_in((self.folder / CARD).read_text(encoding="utf-8"))

    def text(self) -> str:
        """In lines for people."""
        seen = "private" if self.private else "public"
        lines = [f"{self.folder} to {_endpoint()}/{self.repository} ({seen})"]
        lines += [f"  {size:>15,}  {name}" for name, size in self.files.items()]
        lines += [f"  {'left out':>15}  {name}" for name in self.left_out]
        lines.append(f"  {sum(self.files.values()):>15,}  bytes in all")
        return "\n".join(lines)

    def doubts(self) -> Iterator[str]:
        """What should be mended before it is sent."""
        if self.license is None:
            yield (
                f"{self.folder / CARD}: no license in the metadata; the teacher's holds for its "
                "student, too: add the line `license: NAME`"
            )


def planned_upload(run: Path, repository: str, *, private: bool) -> Upload:
    """What would be sent of a run's student; nothing is.

    Args:
        run: its folder.
        repository: OWNER/NAME.
        private: whether only its owner shall see it.

    Raises:
        InvalidValueError: there is no run, or the name is none that the hub takes.
        ModelError: the run has no student with a card yet.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    resolved_recipe(run)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InvalidValueError(f"--repo: expected OWNER/NAME, found {one_line(error)}") from error
    folder = run / STUDENT
    for name in ("config.json", CARD):
        if not (folder / name).exists():
            raise ModelError(
                f"{folder}: expected a finished student with {name}, found none; let `tdistill "
                "run` come to its end first"
            )
    found = sorted(path for path in folder.iterdir() if path.is_file())
    sent = {path.name: path.stat().st_size for path in found if path.suffix in _SENT}
    left_out = tuple(path.name for path in found if path.name not in sent)
    return Upload(folder, repository, private, sent, left_out)


def send(upload: Upload, *, over: bool) -> str:
    """Make the repository and send the files, in one commit.

    Args:
        upload: what and where.
        over: whether the repository may be there already.

    Returns:
        The address of the commit.

    Raises:
        ModelError: the hub refuses, or is not reached; it says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(endpoint=_endpoint(), library_name="tdistill", library_version=__version__)
    try:
        api.create_repo(upload.repository, private=upload.private, exist_ok=over)
        done = api.upload_folder(
            repo_id=upload.repository,
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message=f"Distilled by tdistill {__version__}",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"{_endpoint()}/{upload.repository}: {_refusal(error)}") from error
    return str(done)


def _refusal(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 409:
        return (
            "expected a new repository, found one of that name; name another, or let its files be "
            "replaced with --over"
        )
    cure = "; log in with `hf auth login`, or set HF_TOKEN" if status in (None, 401, 403) else ""
    return f"expected it to be made and filled, found: {one_line(error)}{cure}"


def _endpoint() -> str:
    return os.environ.get(_ENDPOINT, "https://huggingface.co").rstrip("/")
