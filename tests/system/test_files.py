"""Files are complete or absent, name themselves in errors, and notice damage."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from sitenet.system.files import (
    fingerprint,
    load_tensors,
    locked,
    new_file,
    save_tensors,
    sweep,
    writable_folder,
    write_text,
)

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.tensor(7, dtype=torch.int64),
    "c": torch.ones(3, dtype=torch.bfloat16),
    "d": torch.empty(0, 2),
}
METADATA = {"sitenet": '{"epoch": 3, "error": 0.125}'}


def ended_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---------------------------------------------------------------------------------------------
# Temporary files


def test_a_file_appears_as_a_whole(tmp_path):
    path = tmp_path / "x.txt"
    with new_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    with pytest.raises(RuntimeError), new_file(path) as temporary:
        temporary.write_text("other")
        raise RuntimeError
    assert path.read_text() == "half" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_ended_processes_are_removed(tmp_path):
    gone, running = (tmp_path / f".state.{pid}.tmp" for pid in (ended_process(), os.getppid()))
    unrelated = [tmp_path / ".state.12x.tmp", tmp_path / "state.12.tmp"]
    for path in (gone, running, *unrelated):
        path.write_text("")
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([running, *unrelated])
    sweep(tmp_path / "absent")


def test_the_first_write_into_a_folder_removes_leftovers(tmp_path):
    gone = tmp_path / f".other.{ended_process()}.tmp"
    gone.write_text("")
    write_text(tmp_path / "x", "")
    assert not gone.exists()


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "x.txt"
    with pytest.raises(OSError, match=r"x\.txt") as caught, new_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match=r"absent/x\.txt"):
        write_text(tmp_path / "absent" / "x.txt", "")
    with pytest.raises(OSError, match=r"input\.csv"), new_file(path):  # another file's error
        raise OSError(errno.EIO, "Input/output error", "input.csv")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_without_space_is_named(tmp_path):
    path = tmp_path / "x.txt"
    with pytest.raises(OSError, match=r"x\.txt") as caught, new_file(path):
        with open("/dev/full", "w") as file:
            file.write("x")
    assert caught.value.errno == errno.ENOSPC


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path, monkeypatch):
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="file"):
            writable_folder(path)

    def refuse(self, content):  # root may write everywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/a'"):
        writable_folder(tmp_path / "a")


# ---------------------------------------------------------------------------------------------
# Locks

HOLD = """
import sys
from sitenet.system.files import locked
with locked(sys.argv[1]) as free:
    print(free, flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_released_by_a_kill(tmp_path):
    path = tmp_path / ".lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"True\n"
    with locked(path, wait=False) as free:
        assert not free
    process.kill()
    process.communicate()
    with locked(path) as free:
        assert free
        with locked(path, wait=False) as again:
            assert not again
    with locked(path, wait=False) as free:
        assert free


# ---------------------------------------------------------------------------------------------
# Checksums


def test_a_fingerprint_tells_values_types_shapes_and_order_apart():
    x = np.arange(6.0)
    parts = [
        (),
        ("a", "b"),
        ("ab",),
        ("b", "a"),
        (["a", "b"],),
        (b"ab",),
        (1,),
        (1.0,),
        (None,),
        (x,),
        (x.reshape(2, 3),),
        (x.astype(np.float32),),
        (x[:3], x[3:]),
        ({"a": 1, "b": 2},),
    ]
    assert len({fingerprint(*p) for p in parts}) == len(parts)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(x[::2]) == fingerprint(x[::2].copy())


def test_tensors_come_back_with_their_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS | {"t": TENSORS["a"].T}, METADATA)
    tensors, metadata = load_tensors(path)
    assert metadata == METADATA
    for name, x in (TENSORS | {"t": TENSORS["a"].T}).items():
        assert tensors[name].dtype == x.dtype and torch.equal(tensors[name], x), name


def test_tensors_without_a_checksum_are_read(tmp_path):
    import safetensors.torch

    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TENSORS, path, METADATA)
    assert load_tensors(path)[1] == METADATA


def test_every_damaged_byte_is_noticed(tmp_path):
    """Each byte of the file, one bit of it flipped: the same content, or an error with the name."""
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            tensors, metadata = load_tensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged"), place
        else:  # such as the padding of the header, or the name of the checksum itself
            assert METADATA.items() <= metadata.items() and tensors.keys() == TENSORS.keys(), place
            assert all(torch.equal(tensors[k], x) for k, x in TENSORS.items()), place
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged"):
            load_tensors(path)


def test_absent_files_are_not_damaged_ones(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent.safetensors")
