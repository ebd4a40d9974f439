"""What the demo needs and brings along: its pictures and its three small teachers. The sharp teacher is code (sharpened.py)."""
