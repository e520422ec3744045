"""The study: plans, stored runs, claims, figures, explorer and command line, on top of `rsslib`."""
