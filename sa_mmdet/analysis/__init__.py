"""Analysis of one model: complexity, time and memory, activation maps, and the gates of its attention."""

from .complexity import Complexity, analyze

__all__ = ["Complexity", "analyze"]
