"""``pytest -p no_triton``: the benches leave out what they would compile with ``torch.compile``."""

import sys

sys.modules["triton"] = None  # type: ignore[assignment]
