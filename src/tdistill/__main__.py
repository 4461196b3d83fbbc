"""``python -m tdistill``."""

from __future__ import annotations

import sys

from tdistill.cli import main

sys.exit(main())
