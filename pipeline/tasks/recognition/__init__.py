"""Cross-resolution recognition: a teacher that sees high resolution, a student that sees low resolution."""
