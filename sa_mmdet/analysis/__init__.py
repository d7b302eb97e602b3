"""What a model costs and where it looks: complexity, time and memory, activation maps, gates."""

from .complexity import Complexity, analyze

__all__ = ["Complexity", "analyze"]
