"""The simulator: the real fleet core among simulated workers, clients, clock and network, under a seeded schedule.

Everything random in a history comes from its seed; what it does is a list of moves, so a history that breaks an
invariant can be played again and shrunk. `scripts/simulate` runs it at length.
"""
