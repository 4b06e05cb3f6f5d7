from tests.helpers.halves import halves, together

__all__ = ["halves", "together"]
