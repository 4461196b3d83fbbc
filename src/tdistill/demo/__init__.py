"""What ships with the package for `tdistill demo`: short instructions with reference answers."""
