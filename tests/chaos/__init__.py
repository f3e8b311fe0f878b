"""Chaos: a real server, jobs without end, a fault every few seconds; then every job that was accepted is held to the promises.

`make chaos SEED=1 MINUTES=30`. The seed fixes which faults come, in which order and with which pauses. Not collected by pytest.
"""
