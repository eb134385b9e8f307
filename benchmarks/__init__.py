"""Measures wfpioctl against everything that a user could pick instead: python -m benchmarks.

Nothing in here is installed, and no test depends on a time; docs/performance.md explains the rows.
"""
