"""The published Site-Net: its config keys, its checkpoints, and its padded computation."""
