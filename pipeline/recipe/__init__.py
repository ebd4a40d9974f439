"""The typed recipe: its sections, and how it is read."""
