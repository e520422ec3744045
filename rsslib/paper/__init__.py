"""The paper: its figures, tables and claims, from the tables of finished runs."""
