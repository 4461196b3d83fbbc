"""What is collected for doctests depends on what is installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["src/tdistill/models/head/triton_rows.py"]
