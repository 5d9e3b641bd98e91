"""What `dspool demo` runs: the whole story on real processes, in under a minute, without a network."""

from orchestrator.demo.story import tell

__all__ = ["tell"]
