"""What Descent's predictions are compared with: the same network in other servers. Each file runs in an environment of its own.

`NETWORK` in the environment is the folder that bench/network.py has made.
"""
