"""How idle threads of the OpenMP runtime wait for work; imported before torch loads the runtime.

By default GNU's runtime lets them spin for 5 to 15 ms. Beside another busy process a spinning
thread holds a core that a working thread needs, and training on two cores falls to a fifth of its
speed (bench/bench_busy.py). 10,000 turns cost nothing where nothing else runs; none at all, a
quarter of the speed of small models. Variables that the user has set stay as they are.
"""

import os
import sys

# GNU: turns of the waiting loop, 20 to 50 ns each. LLVM: milliseconds.
SHORT_SPIN = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}


def _choose() -> str:
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", *SHORT_SPIN)):
        inherited = all(os.environ.get(name) == value for name, value in SHORT_SPIN.items())
        return "short spin" if inherited else "environment"
    if "torch" in sys.modules:
        return "sleep"
    os.environ.update(SHORT_SPIN)
    return "short spin"


# "environment": the user's variables. "short spin": ours, set in time. "sleep": torch was imported
# first, so sitenet.system.compiled tells its runtime to let idle threads sleep at once.
POLICY = _choose()
