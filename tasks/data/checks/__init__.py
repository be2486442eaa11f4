"""What can be wrong with a row of preference data: findings, the suites that test for them, and the quarantine."""
