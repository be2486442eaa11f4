"""What can be wrong with a row of preference data: findings, the suites that judge them, and the quarantine."""
