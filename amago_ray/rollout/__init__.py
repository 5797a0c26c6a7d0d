"""Rollout: the policy acts in many environments at once and leaves finished trajectories behind."""
