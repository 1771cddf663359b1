"""Idle OpenMP threads spin for a short time only, whatever is imported first."""

import os
import subprocess
import sys

import pytest

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# After a parallel product the main thread works alone for 10 ms. Prints the policy and the
# milliseconds of CPU time that the other threads take per round.
ROUNDS = """
import time
{imports}
from sitenet.system.waiting import POLICY
import torch, sitenet.ops
torch.set_num_threads(2)
x = torch.randn(300, 300)
x @ x
others = time.process_time() - time.thread_time()
work = 0.0
for _ in range(20):
    x @ x
    after = time.process_time() - time.thread_time()
    begin = time.thread_time()
    while time.thread_time() - begin < 0.01:
        pass
    work += time.process_time() - time.thread_time() - after
print(POLICY, work / 20 * 1e3, sep=",")
"""


def run(imports, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables
    command = [sys.executable, "-c", ROUNDS.format(imports=imports)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    policy, milliseconds = output.stdout.split(",")
    return policy, float(milliseconds)


@pytest.mark.parametrize(
    ("imports", "policy"),
    [
        ("import sitenet", "short spin"),
        ("import torch", "sleep"),
        ("import sitenet.cli.app", "short spin"),
    ],
)
def test_idle_threads_sleep_soon(imports, policy):
    """3,000 turns take 0.06 to 0.2 ms, the runtime's 300,000 take 5 ms or more."""
    got, milliseconds = run(imports)
    assert got == policy
    assert milliseconds < 2


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("imports", ["import sitenet", "import torch"])
def test_the_users_variables_stay(imports, name):
    value = "ACTIVE" if name == "OMP_WAIT_POLICY" else "7"
    code = f"{imports}\nimport sitenet, os\nfrom sitenet.system.waiting import POLICY\n"
    code += f"print(POLICY, *(os.environ.get(name) for name in {VARIABLES}))"
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | {name: value}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    expected = [value if name == variable else "None" for variable in VARIABLES]
    assert output.stdout.split() == ["environment", *expected]


def test_a_child_inherits_the_short_spin():
    code = "import sitenet, subprocess, sys\n"
    code += "subprocess.run([sys.executable, '-c', 'import torch, sitenet\\n"
    code += "from sitenet.system.waiting import POLICY\\nprint(POLICY)'], check=True)"
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == "short spin"
