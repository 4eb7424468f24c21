"""Fixtures of the end-to-end tests."""

from tests.e2e.installed import product

__all__ = ["product"]
