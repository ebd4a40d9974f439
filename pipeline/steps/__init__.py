"""Work as values, the one planner that finds what is missing of it, and what runs it."""
