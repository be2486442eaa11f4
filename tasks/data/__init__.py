"""From files people have to checked, split and tokenised records."""
