"""The paper's claims: statements, evidence, verdicts."""
