"""What the demo needs and brings along: its pictures and its three small teachers. No code."""
