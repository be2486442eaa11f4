"""AI feedback: answers of a policy, and pairs of them that a reward or a judge has ordered."""
