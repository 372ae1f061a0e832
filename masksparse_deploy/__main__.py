"""`python -m masksparse_deploy` is the `masksparse` command."""

from masksparse_deploy.cli.main import main

main()
