"""The driver: what runs where, what to do next, and what to do when something dies. No bulk data passes here."""
