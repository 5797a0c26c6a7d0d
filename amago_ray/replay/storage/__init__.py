"""Stored trajectories: files, their index, and what can be read out of them without the run."""
