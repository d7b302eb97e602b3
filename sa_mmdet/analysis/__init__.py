"""What a model costs."""

from .complexity import Complexity, analyze

__all__ = ["Complexity", "analyze"]
