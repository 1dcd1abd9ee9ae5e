"""The simulators' own classes with their faults fixed: what gymnasium opens in place of the registered ones.

Each module imports its simulator, so only the opening of one may import it.
"""
