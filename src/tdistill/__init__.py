"""Distil a causal language model by temporal-difference imitation on the teacher's top-p set.

The public names are listed in ``__init__.pyi`` and load on first use.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
