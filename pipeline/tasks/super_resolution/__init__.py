"""Super-resolution: teachers and a student that enlarge low-resolution pictures."""
