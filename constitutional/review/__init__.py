"""Human spot-checks: a page on which people compare, rewrite or rank replies, and the database of their votes."""
