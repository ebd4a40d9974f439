"""Faculty: several large pretrained networks (teachers) into one small, fast one (student)."""

__version__ = "0.1.0"
