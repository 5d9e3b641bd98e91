"""The fleet core: pure. Events in, effects out, time as an argument."""
