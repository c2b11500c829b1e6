"""Where a file comes from and what one may do with it: licence, commit, generated, vendored."""
