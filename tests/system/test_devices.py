"""What is said of the NVIDIA driver, by ``sitenet info`` and by errors."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from sitenet.system import devices
from sitenet.system.environment import info


@pytest.fixture
def machine(monkeypatch):
    """A function that gives this machine a driver, and sitenet CUDA kernels, of some versions."""

    def give(driver=None, kernels=None, fails=False):
        def read(address):
            address._obj.value = driver or 0
            return int(fails)

        def load(name):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return SimpleNamespace(cuDriverGetVersion=read)

        build = SimpleNamespace(
            with_cuda=kernels is not None,
            cuda_version=kernels,
            level=devices._C.level,
            openmp=devices._C.openmp,
        )
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(devices, "_C", build)
        devices.driver_cuda.cache_clear()

    yield give
    devices.driver_cuda.cache_clear()


@pytest.mark.parametrize(
    ("driver", "version"), [(13000, "13.0"), (12080, "12.8"), (12040, "12.4"), (None, None)]
)
def test_the_driver_tells_its_version(machine, driver, version):
    machine(driver)
    assert devices.driver_cuda() == version


def test_a_driver_that_fails_counts_as_none(machine):
    machine(12080, fails=True)
    assert devices.driver_cuda() is None


@pytest.mark.parametrize(
    ("kernels", "needed"),
    [("13.0.48", "for CUDA 13 (580 or later)"), ("12.9.86", "for CUDA 12 (525 or later)")],
)
def test_info_names_the_driver_needed_and_the_one_present(machine, kernels, needed):
    machine(12080, kernels)
    facts = info()
    assert facts["cuda_driver_needed"] == needed and facts["cuda_driver"] == "12.8"


def test_info_without_kernels_needs_no_driver(machine):
    machine(12080)
    assert info()["cuda_driver_needed"] is None and info()["cuda_driver"] == "12.8"


def test_kernels_newer_than_the_driver_are_refused(machine):
    machine(12080, "13.0.48")
    message = r"need a driver for CUDA 13 \(580 or later\), but the driver is for CUDA 12.8: update"
    with pytest.raises(RuntimeError, match=message):
        devices.need_cuda()
    with pytest.raises(RuntimeError, match=r"build sitenet with nvcc of CUDA 12$"):
        devices.choose_device("cuda")


@pytest.mark.parametrize("driver", [13000, 13010, 14000])
def test_a_driver_of_the_same_or_a_later_version_is_enough(machine, driver):
    machine(driver, "13.1.0")
    devices.need_cuda()


@pytest.mark.parametrize(
    ("driver", "there"),
    [(None, "no NVIDIA driver is installed"), (12080, "the driver is for CUDA 12.8")],
)
def test_missing_kernels_name_the_driver_needed_and_the_one_present(machine, driver, there):
    machine(driver)
    message = rf"SITENET_CUDA=ON \..*525 with CUDA 12, 580 with CUDA 13.*here, {there}$"
    with pytest.raises(RuntimeError, match=message):
        devices.need_cuda()


def test_a_missing_device_names_the_driver_needed_and_the_one_present(machine, monkeypatch):
    machine(None, "13.0.48")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = r"and no NVIDIA driver is installed; .* a driver for CUDA 13 \(580 or later\)"
    with pytest.raises(RuntimeError, match=message):
        devices.choose_device("cuda")
