"""What the demo brings along: its pictures, its three small teachers, and a sharp one made of them (sharpened.py)."""
