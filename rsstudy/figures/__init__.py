"""Figures, pure functions of tables."""
