"""The check of the categories of prompts: in none may the candidate be shown to be worse."""

from tasks.evaluation.gate.check import Check, Evidence, at_most, bounds, not_computed

NAME = "category_regressions"
NAMED = 8  # categories in a sentence; the report has them all


def category_regressions(evidence: Evidence, threshold: int) -> Check:
    """Count the categories in which the candidate is shown to be worse than the opponent, by the training reward."""
    words, categories = f"Categories worse than {evidence.opponent}", evidence.evaluation.categories
    rates = {name: bounds(found.win_rate.vs_opponent) for name, found in categories.items()}
    if None in rates.values():
        return not_computed(NAME, words, threshold)
    worse = [name for name, found in categories.items() if found.win_rate.vs_opponent.conclusion == "worse"]
    few = [name for name, found in categories.items() if not found.enough_prompts]
    details = [f"Win rates there: {', '.join(f'{name} {rates[name]}' for name in worse)}."] if worse else []
    if few:
        more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
        named = ", ".join(few[:NAMED])
        details.append(f"{len(few)} of {len(categories)} have too few prompts for a conclusion: {named}{more}.")
    elif categories:
        details.append(f"All {len(categories)} have enough prompts for a conclusion.")
    else:
        details.append("The prompts have no categories.")
    return at_most(NAME, words, len(worse), threshold, details=" ".join(details), digits=0)
