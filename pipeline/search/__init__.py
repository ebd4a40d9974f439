"""What `faculty tune` does: spaces, trials, early stops, the front."""
