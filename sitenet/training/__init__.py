"""Training, tuning and Matbench."""
