"""A generic build without OpenMP says so, and computes the same on one thread."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest
from conftest import ROOT

import sitenet

GALLIUM_ARSENIDE = ROOT / "examples" / "semiconductors" / "GaAs_zincblende.cif"


@pytest.mark.slow
def test_a_build_without_openmp(tmp_path):
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is missing: pip install 'sitenet[test]'")
    build = tmp_path / "build"
    settings = {
        "CMAKE_DISABLE_FIND_PACKAGE_OpenMP": "ON",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": tmp_path / "sitenet",
        "Python_EXECUTABLE": sys.executable,
        "SITENET_CUDA": "OFF",
        "SITENET_GENERIC": "ON",  # one SIMD level instead of four
        "SITENET_OPTIMISE": "-O1",  # compiles in half the time
        "SITENET_WERROR": "ON",
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    said = subprocess.run(configure, check=True, capture_output=True, text=True).stdout
    assert "without OpenMP; the CPU kernels run on one thread" in said
    subprocess.run(["cmake", "--build", build], check=True)
    package = Path(sitenet.__file__).parent
    ignored = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(package, tmp_path / "sitenet", ignore=ignored, dirs_exist_ok=True)

    # -S: an editable installation finds its own package before any on the path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def run(*command, **settings):
        command = [sys.executable, *command]
        done = subprocess.run(command, check=True, capture_output=True, text=True, **settings)
        return json.loads(done.stdout)

    def run_with(*arguments):
        return run("-m", "sitenet", *arguments)

    def run_without(*arguments):
        return run("-S", "-m", "sitenet", *arguments, env=environment, cwd=tmp_path)

    assert run_with("info", "--json")["openmp"] is True
    facts = run_without("info", "--json")
    assert facts["openmp"] is False and facts["simd"] == "generic"
    predict = ("predict", str(GALLIUM_ARSENIDE), "--json")
    (with_it,), (without,) = run_with(*predict), run_without(*predict)
    name = "band_gap_eV_predicted"
    # Float32 sums of terms near 1 in another order: 1e-5 is 80 units in their last place.
    assert without[name] == pytest.approx(with_it[name], abs=1e-5)
