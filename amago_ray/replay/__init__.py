"""Replay: shards that store trajectories, and the two clients that write to and read from them."""
