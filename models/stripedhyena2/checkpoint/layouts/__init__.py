"""Layouts of checkpoints that other tools write, a file each."""
