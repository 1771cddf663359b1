"""Damaged structure files: read, or refused with a CifError; never anything else.

SITENET_FUZZ sets how many are tried (within SITENET_FUZZ_SECONDS), SITENET_FUZZ_SEED which.
"""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED

import sitenet

TRIES = int(os.environ.get("SITENET_FUZZ", 1500))
SECONDS = float(os.environ.get("SITENET_FUZZ_SECONDS", 8))
SEED = int(os.environ.get("SITENET_FUZZ_SEED", 0))
HARD = Path(os.environ.get("SITENET_HARD_CIFS", SHARED / "data" / "hard_cifs"))
LIMITS = sitenet.Limits(sites=3000)
NUMBERS = ("0", "-1", "1e9", "nan", "?", ".", "1e-9", "0.5(3)", "180", "x", "1/3", "''", "-0")
LINES = ("loop_", "data_x", "data_", "_cell_length_a 0", ";", "'", "global_", "_atom_site_fract_x")


pytestmark = pytest.mark.filterwarnings("ignore::sitenet.CifWarning")


@pytest.fixture(scope="module")
def texts():
    paths = sorted((ROOT / "examples" / "semiconductors").glob("*.cif"))[:40]
    paths += sorted(p for p in HARD.glob("*cif") if p.stat().st_size < 30_000)
    return [path.read_bytes() for path in paths]


def damaged(data, rng):
    """The file with one to four damages, each to some bytes or to a line."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        lines = data.split(b"\n")
        k = rng.randrange(len(lines))
        words = lines[k].split(b" ")
        match rng.randrange(10):
            case 0:
                data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
                continue
            case 1:
                data = data[:place] + data[place + rng.randint(1, 40) :]
                continue
            case 2:
                data = data[:place]
                continue
            case 3:
                lines[k] = rng.choice(LINES).encode()
            case 4:
                lines.insert(k, rng.choice(lines))
            case 5:
                del lines[k]
            case 6:
                rng.shuffle(words)
                lines[k] = b" ".join(words)
            case _:
                words[rng.randrange(len(words))] = rng.choice(NUMBERS).encode()
                lines[k] = b" ".join(words)
        data = b"\n".join(lines)
    return data


def test_damaged_files_are_read_or_refused(texts):
    begin, read, refused = time.monotonic(), 0, 0
    for number in range(TRIES):
        if time.monotonic() - begin > SECONDS:
            break
        rng = random.Random(f"{SEED} {number}")
        data = damaged(rng.choice(texts), rng)
        disorder = rng.choice(("error", "average"))
        since = time.monotonic()
        try:
            crystals = sitenet.read_cifs(data, disorder=disorder, limits=LIMITS)
        except sitenet.CifError as error:
            refused += 1
            assert error.reason and str(error).startswith("CIF text")
        except Exception as error:
            raise AssertionError(f"file {number} of seed {SEED}: {error!r}") from error
        else:
            read += 1
            for crystal in crystals:
                assert crystal.volume > 0
                assert np.isfinite(crystal.frac).all()
                assert ((crystal.frac >= 0) & (crystal.frac < 1)).all()
                if len(crystal) < 200:
                    crystal.primitive()
        assert time.monotonic() - since < 10, f"file {number} of seed {SEED} takes too long"
    print(f"{read} read, {refused} refused")
    assert read > 0 and refused > 0
