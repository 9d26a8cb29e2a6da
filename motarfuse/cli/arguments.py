"""Argument types that more than one verb uses."""

from __future__ import annotations

import argparse


def positive_integer(text: str) -> int:
    """An integer of at least 1; argparse turns the error into a usage message."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value
