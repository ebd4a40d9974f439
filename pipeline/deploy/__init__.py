"""What a student is for: export, evaluation, enlarging pictures."""
