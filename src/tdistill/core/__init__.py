"""The mathematics of method.md as short pure functions over tensors; see each for its equation.

The public names are listed in ``__init__.pyi``. They load on first use, so that importing the
package (and ``tdistill --help``) does not load torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
