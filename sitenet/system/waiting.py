"""How idle threads of the OpenMP runtime wait for work; imported before torch loads the runtime.

By default GNU's runtime lets them spin for 5 ms or more. Beside another busy process a spinning
thread holds a core that a working thread needs. Passes per second through the example on two cores
(training ``sphere`` and ``paper``; bench/bench_busy.py):

    turns     alone          beside a busy process
    300,000   5.20, 12.04    0.69, 2.71 (the runtime's own choice)
     10,000   4.42, 10.09    1.82, 4.79
      3,000   4.23, 10.12    2.67, 5.19

So short waits cost a sixth where nothing else runs, and give two to four times the speed where
something does. Variables that the user has set stay as they are.
"""

import os
import sys

# GNU: turns of the waiting loop, 20 to 50 ns each. LLVM: milliseconds.
SHORT_SPIN = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}


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
