"""Which trajectories are drawn, which slice of each, and how they are changed on the way out."""
