"""The splits of a Dolly study, from two files of instructions: to learn from and to be judged on.

.venv/bin/python studies/dolly.py --dev dolly_dev.jsonl --test dolly_valid.jsonl --out runs/dolly

Any JSONL of instructions does; MiniLLM's splits of Dolly are what the results were made with. The
last 200 rows of the first file choose settings, and are trained on by nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

VALID = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dev", type=Path, required=True, help="to train on, then to choose by")
    parser.add_argument("--test", type=Path, required=True, help="rows for the last tables alone")
    parser.add_argument("--out", type=Path, default=Path("runs/dolly"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    dev = options.dev.read_text(encoding="utf-8").splitlines()
    test = options.test.read_text(encoding="utf-8").splitlines()
    for split, rows in (("train", dev[:-VALID]), ("valid", dev[-VALID:]), ("test", test)):
        (options.out / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{len(rows)} rows in {options.out / split}.jsonl")


if __name__ == "__main__":
    main()
