"""The commands of `amago-ray`, one per file."""
