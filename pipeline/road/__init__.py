"""From a recipe to its results: what is there is skipped, the rest goes to an engine."""
