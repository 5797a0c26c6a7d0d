"""What `driver/probe.py` tries, before any process starts, of the networks and classes that a user has written."""
