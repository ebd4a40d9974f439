"""Search spaces for `faculty tune` as plain data: recipe paths and what to try there. Nothing of Ray here."""
