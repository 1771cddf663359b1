"""Safetensors files carry a checksum over everything that they hold."""

import json

import pytest
import safetensors.torch
import torch

from sitenet.system.files import load_tensors, save_tensors

TENSORS = {
    "weights": torch.arange(12.0).reshape(3, 4).T,  # not contiguous
    "half": torch.ones(5, dtype=torch.bfloat16),
    "numbers": torch.tensor(7),
    "none": torch.empty(0, 3),
}
METADATA = {"facts": json.dumps({"epoch": 3})}


def test_tensors_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    tensors, metadata = load_tensors(path)
    assert metadata == METADATA
    assert tensors.keys() == TENSORS.keys()
    for name, want in TENSORS.items():
        assert tensors[name].dtype == want.dtype and torch.equal(tensors[name], want)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_flipped_byte_changes_what_is_read(tmp_path):
    """Every byte of the file: an error that names it, or the same content (a blank that pads the
    header, or a letter of the checksum's own name)."""
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        for bit in (0x01, 0x20):
            damaged = bytearray(content)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            try:
                tensors, metadata = load_tensors(path)
            except ValueError as error:
                assert "a.safetensors is damaged" in str(error)
                refused += 1
                continue
            assert metadata.items() >= METADATA.items()
            assert all(torch.equal(tensors[name], want) for name, want in TENSORS.items())
    assert refused > 1.9 * len(content)


def test_files_without_a_checksum_still_load(tmp_path):
    path = tmp_path / "old.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, METADATA)
    tensors, metadata = load_tensors(path)
    assert metadata == METADATA and torch.equal(tensors["a"], torch.ones(2))


def test_absent_files_are_not_damaged_ones(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent.safetensors")
